"""A trainer that fails tells its step why, in one line."""

import errno
import sys
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import pytest

from medsam_core.training.errors import DivergedError
from pipelines.runs import launch
from pipelines.training.trainer import reason
from storage.base.errors import IntegrityError

TELLS = """
import sys
from dagster_pipes import open_dagster_pipes
with open_dagster_pipes() as pipes:
    if len(sys.argv) > 1:
        pipes.report_custom_message(sys.argv[1])
sys.exit(3)
"""


def failure_of(arguments: list[str], monkeypatch: pytest.MonkeyPatch, job_file: Path) -> str:
    """Run an asset whose trainer fails, and return what Dagster shows as the reason."""
    monkeypatch.setattr(launch, "trainer_command", lambda _job, _processes: [sys.executable, "-c", TELLS, *arguments])

    @dg.asset
    def trained(context: dg.AssetExecutionContext) -> None:
        launch.launch_trainer(context)(job_file, 1)

    failed = dg.materialize([trained], raise_on_error=False).failure_data_for_node("trained")
    assert failed is not None
    assert failed.user_failure_data is not None
    return str(failed.user_failure_data.description)


def test_the_trainers_own_reason_fails_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job_file = tmp_path / "model" / "job.json"
    told = failure_of(["/state: No space left on device; free some space"], monkeypatch, job_file)
    assert told == f"trainer of {job_file.parent}: /state: No space left on device; free some space"


def test_a_trainer_that_could_not_tell_is_named_with_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "failed with code 3; the trainer's output" in failure_of([], monkeypatch, tmp_path / "job.json")


def test_an_error_of_the_disk_is_told_although_torch_hides_it() -> None:
    hiding = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 1 vs 2")
    hiding.__context__ = OSError(errno.ENOSPC, "No space left on device", "/state/checkpoint.pt")
    assert reason(hiding) == "/state/checkpoint.pt: No space left on device; free some space"


def test_errors_raised_on_purpose_are_told_as_they_are_and_defects_are_not() -> None:
    assert reason(DivergedError("expected finite weights")) == "expected finite weights"
    assert reason(IntegrityError("expected a plan")) == "expected a plan"
    assert reason(ValueError("shapes differ")) is None


class TestMlflowIsNotWhatFailed:
    """The store may stop answering while a trainer is at work, or because of what stopped the trainer."""

    def test_curves_that_cannot_be_logged_are_told_once_and_training_goes_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from threading import Event

        from pipelines.tracking.store import TrackingError
        from pipelines.training import students

        asked, said = [], list[str]()
        twice = Event()

        def log_curve(*_arguments: object) -> None:
            asked.append(1)
            if len(asked) == 2:
                twice.set()
            raise TrackingError("no connection")

        monkeypatch.setattr(students, "FOLLOW_SECONDS", 0.01)
        tracker = SimpleNamespace(log_curve=log_curve)
        with students._following(tracker, SimpleNamespace(), tmp_path / "metrics.jsonl", said.append):  # type: ignore[arg-type]
            assert twice.wait(20), "it is tried again"
        assert said == ["training goes on without live curves: no connection"]
