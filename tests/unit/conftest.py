"""What every unit test runs under: no telemetry, and a clean environment of settings."""

import os

import pytest

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["DO_NOT_TRACK"] = "true"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deployment's own variables, as `make` exports them, must not reach what is tested."""
    for name in [name for name in os.environ if name.startswith("MEDSAM_") and "GOLDEN" not in name]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
