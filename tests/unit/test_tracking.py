"""MLflow runs found by fingerprint, curves that go on after a kill, and a registry that validation alone moves."""

import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from medsam_core.inference.predictor import Predictor
from medsam_core.models.checkpoints import load_model, save_model
from pipelines.base.settings import Settings, read_settings
from pipelines.tracking.tracker import (
    CHAMPION,
    FINGERPRINT_TAG,
    PLACE_TAG,
    PROCESS_TAG,
    WEIGHTS_TAG,
    Point,
    TrackedRun,
    Tracker,
    champion_uri,
    download_model,
    registered_model,
)
from storage.base.processes import process_here, process_note, this_process
from tests.unit.training_helpers import stand_in

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")

_NUMBER = itertools.count()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose tables are made; making them takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow_home")
    Tracker(read_settings({"MEDSAM_HOME": str(folder)}))
    return folder


def settings_of(home: Path) -> Settings:
    """Return settings with an experiment of their own."""
    settings = read_settings({"MEDSAM_HOME": str(home)})
    return dataclasses.replace(
        settings, profile=settings.profile.model_copy(update={"name": f"experiment{next(_NUMBER)}"})
    )


@pytest.fixture
def settings(home: Path) -> Settings:
    return settings_of(home)


@pytest.fixture
def tracker(settings: Settings) -> Tracker:
    return Tracker(settings)


@pytest.fixture
def registry(home: Path, tmp_path: Path) -> Settings:
    """A store of its own, since the registered model is one for the whole store."""
    shutil.copytree(home / "mlflow", tmp_path / "mlflow")
    return settings_of(tmp_path)


def client_of(settings: Settings) -> MlflowClient:
    return MlflowClient(settings.tracking_uri)


def steps(settings: Settings, run: TrackedRun, metric: str) -> list[tuple[int, float]]:
    """Return every point that MLflow holds, doubles included."""
    history = client_of(settings).get_metric_history(run.run_id, metric)
    return sorted((point.step, point.value) for point in history)


def curve(stop: int) -> list[Point]:
    return [(step, {"loss": 1 / (step + 1), "lr": 1e-3}) for step in range(stop)]


def expected(stop: int) -> list[tuple[int, float]]:
    return [(step, values["loss"]) for step, values in curve(stop)]


def test_a_run_is_found_by_fingerprint_whatever_its_name(settings: Settings, tracker: Tracker) -> None:
    first = tracker.open_run("one", "f1", tags={"medsam.release": "r"}, params={"epochs": 3})
    other = tracker.open_run("one", "f2")
    again = Tracker(settings).open_run("renamed", "f1", params={"epochs": 4})
    assert again == first
    assert other.run_id != first.run_id
    data = client_of(settings).get_run(first.run_id).data
    assert data.params == {"epochs": "3"}, "a found run keeps its parameters"
    assert (data.tags["medsam.release"], data.tags[FINGERPRINT_TAG]) == ("r", "f1")


def test_nothing_is_found_in_another_experiment(home: Path, tracker: Tracker) -> None:
    tracker.open_run("one", "shared")
    assert tracker.find("shared") is not None
    assert Tracker(settings_of(home)).find("shared") is None


def test_a_child_stands_under_its_parent(settings: Settings, tracker: Tracker) -> None:
    parent = tracker.open_run("parent", "p")
    child = tracker.open_run("child", "c", parent=lambda: parent)
    assert client_of(settings).get_run(child.run_id).data.tags["mlflow.parentRunId"] == parent.run_id


def test_a_child_that_is_found_starts_no_parent(settings: Settings, tracker: Tracker) -> None:
    child = tracker.open_run("child", "c", parent=lambda: tracker.open_run("parent", "p"))
    again = tracker.open_run("child", "c", parent=lambda: tracker.open_run("another parent", "q"))
    assert again.run_id == child.run_id
    assert tracker.find("q") is None


def test_more_parameters_than_one_call_takes_all_arrive(settings: Settings, tracker: Tracker) -> None:
    params = {f"p{number}": number for number in range(250)}
    run = tracker.open_run("many", "f", params={**params, "long": "x" * 9000})
    found = client_of(settings).get_run(run.run_id).data.params
    assert len(found) == 251
    assert found["p249"] == "249"


def test_a_reused_result_adds_nothing_to_its_finished_run(settings: Settings, tracker: Tracker) -> None:
    run = tracker.open_run("stage", "f")
    assert tracker.log_curve(run, curve(5)) == 5
    tracker.log_metrics(run, {"test.dsc": 0.7})
    tracker.close_run(run)
    again = Tracker(settings).open_run("stage", "f")
    assert again.finished
    assert tracker.log_curve(again, curve(5)) == 0
    tracker.log_metrics(again, {"test.dsc": 0.7})
    assert steps(settings, run, "loss") == expected(5)
    assert steps(settings, run, "test.dsc") == [(0, 0.7)]
    assert client_of(settings).get_run(run.run_id).info.status == "FINISHED"


def test_a_curve_goes_on_after_its_last_step(settings: Settings, tracker: Tracker) -> None:
    run = tracker.open_run("stage", "f")
    assert tracker.log_curve(run, curve(3)) == 3
    resumed = Tracker(settings).open_run("stage", "f")
    assert not resumed.finished
    assert tracker.last_step(resumed, "loss") == 2
    assert tracker.log_curve(resumed, curve(7)) == 4
    assert steps(settings, run, "loss") == expected(7)
    assert len(steps(settings, run, "lr")) == 7


def test_a_long_curve_killed_between_two_calls_is_whole_after_the_next(
    settings: Settings, tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tracker.open_run("stage", "f")
    log_batch = tracker._client.log_batch
    calls: list[int] = []

    def dying(run_id: str, metrics: Sequence[Any] = ()) -> None:
        if calls:
            raise ConnectionError
        calls.append(len(metrics))
        log_batch(run_id, metrics=metrics)

    monkeypatch.setattr(tracker._client, "log_batch", dying)
    with pytest.raises(ConnectionError):
        tracker.log_curve(run, curve(1000))
    monkeypatch.undo()
    partial = steps(settings, run, "loss")
    assert 0 < len(partial) < 1000
    assert partial == expected(len(partial))
    assert len(steps(settings, run, "lr")) == len(partial), "a step is sent whole"
    assert calls[0] <= 1000, "MLflow takes no more"
    assert tracker.log_curve(run, curve(1000)) == 1000 - len(partial)
    assert steps(settings, run, "loss") == expected(1000)


def test_a_prefix_is_a_curve_of_its_own(settings: Settings, tracker: Tracker) -> None:
    run = tracker.open_run("stage", "f")
    tracker.log_curve(run, curve(3))
    assert tracker.log_curve(run, curve(3), prefix="teacher.") == 3
    assert steps(settings, run, "teacher.loss") == steps(settings, run, "loss") == expected(3)


def test_no_step_logged_is_minus_one(tracker: Tracker) -> None:
    assert tracker.last_step(tracker.open_run("stage", "f"), "loss") == -1


def test_a_failed_run_is_taken_up_again_under_the_same_id(settings: Settings, tracker: Tracker) -> None:
    run = tracker.open_run("stage", "f")
    tracker.close_run(run, failed=True)
    assert client_of(settings).get_run(run.run_id).info.status == "FAILED"
    again = tracker.open_run("stage", "f")
    assert (again.run_id, again.finished) == (run.run_id, False)
    assert client_of(settings).get_run(run.run_id).info.status == "RUNNING"


def test_files_and_pictures_reach_the_artefacts(settings: Settings, tracker: Tracker, tmp_path: Path) -> None:
    run = tracker.open_run("stage", "f")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "summary.csv").write_text("a,b\n")
    (tmp_path / "curve.png").write_bytes(b"png")
    tracker.log_files(run, tmp_path / "report", "report")
    tracker.log_picture(run, tmp_path / "curve.png", "pictures")
    folder = Path(client_of(settings).download_artifacts(run.run_id, "", str(tmp_path)))
    assert (folder / "report" / "summary.csv").read_text() == "a,b\n"
    assert (folder / "pictures" / "curve.png").read_bytes() == b"png"
    assert settings.mlflow_folder in Path(client_of(settings).get_run(run.run_id).info.artifact_uri[7:]).parents


@pytest.fixture
def living_process() -> Iterator[int]:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        yield child.pid
        child.kill()


def test_only_the_run_of_a_dead_process_is_closed(settings: Settings, tracker: Tracker, living_process: int) -> None:
    with subprocess.Popen(["true"]) as dead:
        dead.wait()
    stale = tracker.open_run("stale", "s", tags={PROCESS_TAG: str(dead.pid)})
    finished = tracker.open_run("finished", "f", tags={PROCESS_TAG: str(dead.pid)})
    tracker.close_run(finished)
    mine = tracker.open_run("mine", "m")
    other = tracker.open_run("other", "o", tags={PROCESS_TAG: str(living_process)})
    assert tracker.close_stale() == [stale.run_id]
    status = {run.run_id: client_of(settings).get_run(run.run_id).info.status for run in (stale, finished, mine, other)}
    assert status == {
        stale.run_id: "KILLED",
        finished.run_id: "FINISHED",
        mine.run_id: "RUNNING",
        other.run_id: "RUNNING",
    }
    taken_up = tracker.open_run("stale", "s")
    assert (taken_up.run_id, taken_up.finished) == (stale.run_id, False)
    assert client_of(settings).get_run(stale.run_id).data.tags[PROCESS_TAG] == str(os.getpid())


@pytest.mark.parametrize("other", [{"host": "another-machine"}, {"namespace": "pid:[1]"}])
def test_the_run_of_another_machine_or_container_is_not_closed(
    settings: Settings, tracker: Tracker, other: dict[str, str]
) -> None:
    """On a shared disk a process id means a process of the machine that wrote it alone."""
    with subprocess.Popen(["true"]) as dead:
        dead.wait()
    note = {**process_note(process_here(dead.pid)), **other}
    run = tracker.open_run("theirs", "t", tags={PROCESS_TAG: str(dead.pid), PLACE_TAG: json.dumps(note)})
    assert tracker.close_stale() == []
    assert client_of(settings).get_run(run.run_id).info.status == "RUNNING"


def test_the_run_of_a_machine_of_the_same_name_is_not_closed(settings: Settings, tracker: Tracker) -> None:
    note = {**process_note(this_process()), "boot": "of another machine"}
    run = tracker.open_run("theirs", "t", tags={PROCESS_TAG: str(note["process"]), PLACE_TAG: json.dumps(note)})
    assert tracker.close_stale() == []
    assert client_of(settings).get_run(run.run_id).info.status == "RUNNING"


@pytest.mark.parametrize("note", [None, "", "{", "[]", "{}", '{"process": "x"}'])
def test_a_run_that_names_no_place_is_not_closed(settings: Settings, tracker: Tracker, note: str | None) -> None:
    """Of the version before, which named none, or with a tag that was changed on the page."""
    run = tracker.open_run(
        "theirs", "t", tags={PROCESS_TAG: "999999999", **({} if note is None else {PLACE_TAG: note})}
    )
    if note is None:
        client_of(settings).delete_tag(run.run_id, PLACE_TAG)
    assert tracker.close_stale() == []
    assert client_of(settings).get_run(run.run_id).info.status == "RUNNING"


def test_a_run_taken_up_names_its_new_process_and_place(settings: Settings, tracker: Tracker) -> None:
    note = {"process": 1, "born": "1", "host": "another-machine", "boot": "", "namespace": ""}
    tracker.open_run("run", "t", tags={PROCESS_TAG: "1", PLACE_TAG: json.dumps(note)})
    taken_up = tracker.open_run("run", "t")
    tags = client_of(settings).get_run(taken_up.run_id).data.tags
    assert json.loads(tags[PLACE_TAG]) == process_note(this_process())


def test_runs_of_a_server_are_not_judged_by_this_machines_processes(
    settings: Settings, tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker.open_run("stale", "s", tags={PROCESS_TAG: "999999999"})
    monkeypatch.setattr(tracker, "_local", False)
    assert tracker.close_stale() == []


INITIALISE = """
import sys
from pathlib import Path
from pipelines.base.settings import read_settings
from pipelines.tracking.tracker import Tracker
settings = read_settings({"MEDSAM_HOME": sys.argv[1]})
print("ready", flush=True)
sys.stdin.readline()
Tracker(settings).open_run("run", sys.argv[2])
"""


@pytest.mark.slow
def test_four_processes_that_meet_a_fresh_store_all_succeed(tmp_path: Path) -> None:
    commands = [[sys.executable, "-c", INITIALISE, str(tmp_path), f"f{number}"] for number in range(4)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    children = [subprocess.Popen(command, **pipes) for command in commands]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    errors = [child.communicate()[1] for child in children]
    assert [child.returncode for child in children] == [0] * 4, errors
    client = MlflowClient(read_settings({"MEDSAM_HOME": str(tmp_path)}).tracking_uri)
    experiment = client.get_experiment_by_name("repvit-medsam/sample")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    assert {run.data.tags[FINGERPRINT_TAG] for run in found} == {"f0", "f1", "f2", "f3"}


Register = Callable[[str, float], tuple[str, bool]]


def registering(settings: Settings, folder: Path) -> Register:
    """Return a function that registers a file saying its own fingerprint."""
    tracker = Tracker(settings)

    def register(fingerprint: str, score: float) -> tuple[str, bool]:
        own = folder / fingerprint
        own.mkdir(parents=True, exist_ok=True)
        (own / "model.safetensors").write_text(fingerprint)
        (own / "training_cases.json").write_text(f'{{"{fingerprint}": "train"}}')
        run = tracker.open_run(fingerprint, fingerprint)
        return tracker.register(run, own / "model.safetensors", score, beside=[own / "training_cases.json"])

    return register


def test_the_alias_moves_only_to_a_higher_validation_score(registry: Settings, tmp_path: Path) -> None:
    register = registering(registry, tmp_path / "models")
    client = client_of(registry)
    assert Tracker(registry).champion() is None

    def champion() -> str:
        file = download_model(champion_uri(registry), registry.tracking_uri, tmp_path / f"download{next(_NUMBER)}")
        assert (file.parent / "training_cases.json").read_text() == f'{{"{file.read_text()}": "train"}}'
        return file.read_text()

    assert register("first", 0.5) == ("1", True)
    assert champion() == "first"
    assert register("worse", 0.4) == ("2", False)
    assert register("equal", 0.5) == ("3", False)
    assert champion() == "first"
    assert register("better", 0.6) == ("4", True)
    assert champion() == "better"
    assert register("first", 0.5) == ("1", False), "a reused model is not registered twice"
    assert register("better", 0.6) == ("4", True)
    assert len(client.search_model_versions(f"name = '{registered_model(registry)}'")) == 4
    assert client.get_model_version_by_alias(registered_model(registry), CHAMPION).tags["validation_dsc"] == "0.6"


@pytest.mark.parametrize("made_before", [False, True], ids=["tagged", "of a release before the tag"])
def test_the_same_weights_are_one_version_however_often_they_are_scored_anew(
    registry: Settings, tmp_path: Path, made_before: bool
) -> None:
    """A new way of scoring is another report and another run, of the same student."""
    tracker, client, name = Tracker(registry), client_of(registry), registered_model(registry)
    student, other = tmp_path / "model.safetensors", tmp_path / "other" / "model.safetensors"
    other.parent.mkdir()
    student.write_text("student")
    other.write_text("other")
    assert tracker.register(tracker.open_run("report", "scored once"), student, 0.5) == ("1", True)
    if made_before:
        client.delete_model_version_tag(name, "1", WEIGHTS_TAG)
    anew = tracker.open_run("report", "scored anew")
    assert tracker.register(anew, student, 0.3) == ("1", True)
    assert client.get_model_version(name, "1").tags["validation_dsc"] == "0.3", "the present score is compared"
    assert tracker.register(tracker.open_run("report", "other"), other, 0.4) == ("2", True)
    assert len(client.search_model_versions(f"name = '{name}'")) == 2


def test_files_that_a_version_lost_are_written_again_where_it_looks_for_them(
    registry: Settings, tmp_path: Path
) -> None:
    tracker, student = Tracker(registry), tmp_path / "model.safetensors"
    student.write_text("student")
    tracker.register(tracker.open_run("report", "scored once"), student, 0.5)
    for folder in (registry.mlflow_folder / "artifacts").rglob("model"):
        shutil.rmtree(folder)
    tracker.register(tracker.open_run("report", "scored anew"), student, 0.5)
    assert download_model(champion_uri(registry), registry.tracking_uri, tmp_path / "to").read_text() == "student"


def test_a_score_that_is_no_number_never_keeps_the_alias(registry: Settings, tmp_path: Path) -> None:
    register = registering(registry, tmp_path / "models")
    assert register("unscored", float("nan")) == ("1", True)
    assert register("scored", 0.1) == ("2", True)
    assert register("unscored too", float("nan")) == ("3", False)


def test_a_model_that_is_not_there_is_said_to_be_missing(registry: Settings, tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"models:/repvit-medsam-experiment\d+@champion: expected a model in sqlite"
    ):
        download_model(champion_uri(registry), registry.tracking_uri, tmp_path / "download")


def test_an_artefact_without_weights_is_refused(registry: Settings, tmp_path: Path) -> None:
    tracker = Tracker(registry)
    run = tracker.open_run("run", "f")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "notes.txt").write_text("no model")
    tracker.log_files(run, tmp_path / "files", "report")
    with pytest.raises(FileNotFoundError, match=r"expected one \.safetensors file, found 0"):
        download_model(f"runs:/{run.run_id}/report", registry.tracking_uri, tmp_path / "download")


def test_the_registered_model_predicts_what_its_weights_do(registry: Settings, tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    save_model(weights, stand_in().eval(), {"role": "test"})
    tracker = Tracker(registry)
    tracker.register(tracker.open_run("run", "f"), weights, 0.5)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 50), dtype=np.uint8)
    volume = rng.integers(0, 256, (3, 40, 50), dtype=np.uint8)
    mlflow.set_tracking_uri(registry.tracking_uri)
    model = mlflow.pyfunc.load_model(champion_uri(registry))
    direct = Predictor(load_model(weights))
    (segs,) = model.predict([{"imgs": image, "boxes": np.array([[3, 4, 20, 30], [10, 5, 49, 39]])}])
    wanted = direct.predict(image, np.array([[3, 4, 21, 31], [10, 5, 50, 40]]), is_3d=False)
    np.testing.assert_array_equal(segs, wanted)
    assert set(np.unique(wanted)) >= {1, 2}
    (in_depth,) = model.predict([{"imgs": volume, "boxes": np.array([[3, 4, 0, 20, 30, 1]])}])
    wanted = direct.predict(volume, np.array([[3, 4, 0, 21, 31, 1]]), is_3d=True)
    np.testing.assert_array_equal(in_depth, wanted)
    assert in_depth[:2].any()
    assert not in_depth[2].any(), "the box ends at slice 1"
