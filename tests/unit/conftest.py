"""What every unit test runs under: no telemetry, one thread, and a clean environment of settings."""

import os

import pytest

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["DO_NOT_TRACK"] = "true"
# Small tensors on several threads wait for one another, several times as long where the machine is shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deployment's own variables, as `make` exports them, must not reach what is tested."""
    for name in [name for name in os.environ if name.startswith("MEDSAM_") and "GOLDEN" not in name]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
