"""`kill -9` of a run at every stretch of the flow: the same command ends where an undisturbed run does.

What belongs here: processes that die and what the next run makes of their remains.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient

from tests.integration.conftest import Finished
from tests.integration.deployment import DAGSTER, FULL_PIPELINE, Deployment, deploy

pytestmark = pytest.mark.slow

Reached = Callable[[Path], bool]


def _ingesting(state: Path) -> bool:
    """A part of a slice store is written, and no release is made."""
    return any(state.glob("stores/*/parts/*.json")) and not any(state.glob("artefacts/release/*/done.json"))


def _caching(state: Path) -> bool:
    """A part of the last cache to be written is there, and that cache is not published."""
    return any(state.glob("caches/logits/*/parts/*.json")) and not any(state.glob("caches/logits/*/manifest.json"))


def _training(stage: str) -> Reached:
    def reached(state: Path) -> bool:
        """The stage has a checkpoint, and is not done."""
        for checkpoint in state.glob("artefacts/model/*/checkpoint.pt"):
            made_from = json.loads((checkpoint.parent / "made_from.json").read_text())
            done = (checkpoint.parent / "done.json").exists() or (checkpoint.parent / "model.safetensors").exists()
            if made_from["stage"] == stage and not done:
                return True
        return False

    return reached


STRETCHES: dict[str, Reached] = {
    "ingest": _ingesting,
    "caching": _caching,
    "distillation": _training("distillation"),
    "finetuning": _training("finetuning"),
}


def _trainers(deployment: Deployment) -> list[int]:
    """Return the living trainer processes of a deployment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().decode().split("\0")
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        own = any(part.startswith(str(deployment.home)) for part in command)
        if "pipelines.training.trainer" in command and own and state not in "ZX":
            found.append(int(folder.name))
    return found


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def _killed_run(deployment: Deployment, stretch: str, command: Sequence[str] = FULL_PIPELINE) -> None:
    """Start a run and kill it once it has reached a stretch."""
    state = deployment.state
    process = deployment.start(*command)
    try:
        assert _wait(lambda: STRETCHES[stretch](state) or process.poll() is not None, 600)
        assert process.poll() is None, (
            f"ended before {stretch}:\n{(deployment.home / 'output.txt').read_text()[-4000:]}"
        )
        assert bool(_trainers(deployment)) == (stretch in ("distillation", "finetuning"))
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert STRETCHES[stretch](state), f"expected to have killed the run during {stretch}, found that it got further"
    assert _wait(lambda: not _trainers(deployment), 5), "a trainer outlived the run that started it"


def _statuses(deployment: Deployment) -> list[dg.DagsterRunStatus]:
    """Return the status of every run, the oldest first."""
    return [run.status for run in deployment.instance.get_runs()][::-1]


def _training_runs(deployment: Deployment) -> dict[str, str]:
    """Return the status of MLflow's runs by name; a name that occurs twice fails."""
    client = MlflowClient(deployment.workspace.settings.tracking_uri)
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert len({run.info.run_name for run in runs}) == len(runs)
    return {run.info.run_name: run.info.status for run in runs}


def _logged_steps(deployment: Deployment, name: str) -> list[int]:
    client = MlflowClient(deployment.workspace.settings.tracking_uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(experiments, f"attributes.run_name = '{name}'")
    return [point.step for point in client.get_metric_history(run.info.run_id, "loss")]


@pytest.fixture(scope="module")
def survivor(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """A deployment whose run was killed in every stretch in turn, each time taken up by the same command."""
    deployment = deploy(tmp_path_factory.mktemp("killed"))
    for number, stretch in enumerate(STRETCHES, start=1):
        _killed_run(deployment, stretch)
        earlier, last = _statuses(deployment)[:-1], _statuses(deployment)[-1]
        assert earlier == [dg.DagsterRunStatus.FAILURE] * (number - 1)
        assert last == dg.DagsterRunStatus.STARTED
    deployment.run_pipeline()
    return deployment


def test_the_next_run_marks_a_dead_one_as_failed(survivor: Deployment) -> None:
    failed = [dg.DagsterRunStatus.FAILURE] * len(STRETCHES)
    assert _statuses(survivor)[: len(STRETCHES) + 1] == [*failed, dg.DagsterRunStatus.SUCCESS]


def test_killed_runs_end_in_the_same_fingerprints(survivor: Deployment, finished: Finished) -> None:
    assert survivor.ledger()["fingerprint"].to_dict() == finished.ledger["fingerprint"].to_dict()


@pytest.mark.parametrize("asset", ["student_distilled", "student_finetuned"])
@pytest.mark.parametrize("file", ["model.safetensors", "metrics.jsonl"])
def test_killed_trainings_end_in_the_same_bytes(
    survivor: Deployment, finished: Finished, asset: str, file: str
) -> None:
    name = f"proposed/{asset}"
    expected = finished.deployment.folder(name) / file
    assert (survivor.folder(name) / file).read_bytes() == expected.read_bytes()


@pytest.mark.parametrize("asset", ["proposed/scores", "baseline_scores"])
def test_killed_runs_end_in_the_same_metrics(survivor: Deployment, finished: Finished, asset: str) -> None:
    pd.testing.assert_frame_equal(survivor.rows(asset), finished.deployment.rows(asset), check_exact=True)


def test_mlflow_holds_each_stage_and_step_once(survivor: Deployment) -> None:
    assert set(_training_runs(survivor).values()) == {"FINISHED"}
    for stage in ("distillation", "finetuning"):
        assert _logged_steps(survivor, f"proposed/{stage}") == [0, 1, 2, 3]


def test_the_next_run_closes_what_mlflow_still_calls_running(finished: Finished, tmp_path: Path) -> None:
    """Even a run that has nothing to do with training closes it, and the training is taken up under the same run."""
    deployment = finished.deployment.moved_to(tmp_path / "home")
    folder = deployment.folder("proposed/student_finetuned")
    for name in ("done.json", "model.safetensors", "checkpoint.pt"):
        (folder / name).unlink()
    _killed_run(deployment, "finetuning")
    assert _training_runs(deployment)["proposed/finetuning"] == "RUNNING"
    deployment.run(DAGSTER, "job", "execute", "-j", "ingest")
    assert _training_runs(deployment)["proposed/finetuning"] == "KILLED"
    deployment.run_pipeline()
    assert _training_runs(deployment)["proposed/finetuning"] == "FINISHED"
    assert _logged_steps(deployment, "proposed/finetuning") == [0, 1, 2, 3]


def test_a_step_in_a_process_of_its_own_dies_with_its_run(finished: Finished, tmp_path: Path) -> None:
    """The default executor: neither a dead run's step nor the pool's slot that it held stands in the next one's way."""
    copy = finished.deployment.moved_to(tmp_path / "home")
    deployment = Deployment(copy.home, copy.profile, {"MEDSAM_EXECUTOR": "multiprocess"})
    folder = deployment.folder("proposed/student_finetuned")
    for name in ("done.json", "model.safetensors", "checkpoint.pt"):
        (folder / name).unlink()
    command = (DAGSTER, "asset", "materialize", "--select", 'key:"proposed/student_finetuned"')
    _killed_run(deployment, "finetuning", command)

    process = deployment.start(*command)
    try:
        assert _wait(lambda: process.poll() is not None, 300), "expected the next run to end, found it waiting"
    finally:
        process.kill()
    assert process.wait() == 0
    assert _statuses(deployment) == [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.SUCCESS]
