"""MLflow's store: reached, written, moved, restored. Failures are one line that says where and what to do.

What belongs here: what goes wrong with a server, a file, or what the page can delete.
"""

import dataclasses
import itertools
import shutil
import socket
import sqlite3
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from pipelines.base.settings import Settings, read_settings
from pipelines.tracking import store as tracking_store
from pipelines.tracking.store import TrackingError, require_tracking, shown
from pipelines.tracking.tracker import Tracker, champion_uri, download_model, registered_model

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")

_NUMBER = itertools.count()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose tables are made."""
    folder = tmp_path_factory.mktemp("made")
    Tracker(read_settings({"MEDSAM_HOME": str(folder)}))
    return folder


def settings_at(home: Path) -> Settings:
    return read_settings({"MEDSAM_HOME": str(home)})


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    """A home of its own with one finished run and a registered model; a copy of the made one has moved already."""
    (tmp_path / "home").mkdir()
    shutil.copytree(made / "mlflow", tmp_path / "home" / "mlflow")
    (tmp_path / "home" / "mlflow" / "artifacts").mkdir(exist_ok=True)
    register(tmp_path / "home", tmp_path, "first", 0.5)
    return tmp_path / "home"


def register(home: Path, folder: Path, fingerprint: str, score: float) -> tuple[str, bool]:
    file = folder / "model.safetensors"
    file.write_text(fingerprint)
    tracker = Tracker(settings_at(home))
    run = tracker.open_run(fingerprint, fingerprint)
    said = tracker.register(run, file, score)
    tracker.close_run(run)
    return said


def champion(home: Path, to: Path) -> str:
    settings = settings_at(home)
    return download_model(champion_uri(settings), settings.tracking_uri, to / f"got{next(_NUMBER)}").read_text()


def one_line(error: pytest.ExceptionInfo[BaseException], *parts: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


def test_a_deleted_experiment_is_restored_with_its_runs(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = settings_at(home)
    client = MlflowClient(settings.tracking_uri)
    experiment = client.get_experiment_by_name("repvit-medsam/sample")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    tracker = Tracker(settings)
    assert [line for line in caplog.messages if "was deleted; restored" in line] == [
        "MLflow experiment repvit-medsam/sample was deleted; restored with its runs"
    ]
    assert tracker.open_run("first", "first").finished
    assert not tracker.open_run("new", "new").finished


def test_a_deleted_run_is_restored_rather_than_made_twice(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = settings_at(home)
    client = MlflowClient(settings.tracking_uri)
    tracker = Tracker(settings)
    run = tracker.open_run("first", "first")
    client.delete_run(run.run_id)
    assert tracker.open_run("first", "first") == run
    assert client.get_run(run.run_id).info.lifecycle_stage == "active"
    assert sum("was deleted; restored" in line for line in caplog.messages) == 1


def test_a_deleted_registered_model_is_registered_again(home: Path, tmp_path: Path) -> None:
    settings = settings_at(home)
    MlflowClient(settings.tracking_uri).delete_registered_model(registered_model(settings))
    assert Tracker(settings).champion() is None
    assert register(home, tmp_path, "first", 0.5) == ("1", True)
    assert champion(home, tmp_path) == "first"


@pytest.mark.parametrize("keeps_the_old", [True, False])
def test_a_moved_home_finds_its_models_below_itself(home: Path, tmp_path: Path, *, keeps_the_old: bool) -> None:
    there = tmp_path / "moved" / "further"
    shutil.copytree(home, there)
    old = home / "mlflow" / "artifacts"
    if keeps_the_old:
        for file in old.rglob("*.safetensors"):
            file.write_text("the old home's")
    else:
        shutil.rmtree(home)
    assert champion(there, tmp_path) == "first", "a download alone follows, before any run"
    assert register(there, tmp_path, "better", 0.9) == ("2", True)
    assert champion(there, tmp_path) == "better"
    with sqlite3.connect(there / "mlflow" / "mlflow.db") as database:
        for table, column in [
            ("runs", "artifact_uri"),
            ("model_versions", "source"),
            ("model_versions", "storage_location"),
        ]:
            for (value,) in database.execute(f"SELECT {column} FROM {table}"):
                assert value.startswith((there / "mlflow" / "artifacts").as_uri())


def test_a_store_that_another_home_uses_is_not_moved(home: Path, tmp_path: Path) -> None:
    """MLFLOW_TRACKING_URI may name one file for several homes; its artefacts stay with the home that made them."""
    uri = settings_at(home).tracking_uri
    guest = read_settings({"MEDSAM_HOME": str(tmp_path / "guest"), "MLFLOW_TRACKING_URI": uri})
    (tmp_path / "guest" / "mlflow" / "artifacts").mkdir(parents=True)
    Tracker(guest)
    assert champion(home, tmp_path) == "first"


def test_a_guest_that_made_the_experiment_keeps_its_artefacts(made: Path, tmp_path: Path) -> None:
    owner = tmp_path / "owner"
    shutil.copytree(made / "mlflow", owner / "mlflow")
    uri = settings_at(owner).tracking_uri
    profile = {"name": "shared"}
    guest = read_settings({"MEDSAM_HOME": str(tmp_path / "guest"), "MLFLOW_TRACKING_URI": uri})
    guest = dataclasses.replace(guest, profile=guest.profile.model_copy(update=profile))
    own = dataclasses.replace(settings_at(owner), profile=guest.profile)
    (owner / "mlflow" / "artifacts").mkdir(exist_ok=True)
    (tmp_path / "model.safetensors").write_text("the guest's")
    tracker = Tracker(guest)
    tracker.register(tracker.open_run("run", "f"), tmp_path / "model.safetensors", 0.5)
    Tracker(own)
    assert download_model(champion_uri(own), uri, tmp_path / "got").read_text() == "the guest's"


def test_artefacts_that_are_gone_are_said_and_written_again(home: Path, tmp_path: Path) -> None:
    settings = settings_at(home)
    for folder in (home / "mlflow" / "artifacts").iterdir():
        shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError, match=r"expected one \.safetensors file, found 0") as error:
        champion(home, tmp_path)
    one_line(error, "run full_pipeline", champion_uri(settings))
    assert register(home, tmp_path, "first", 0.5) == ("1", True)
    assert champion(home, tmp_path) == "first"


@pytest.mark.parametrize(
    "name", ["per%20cent", "quest?ion", "ha#sh", "a space", "ünï€", "a+b@c;d&e=f", "100%", "%2520"]
)
def test_a_home_of_any_name_holds_its_own_database(tmp_path: Path, name: str) -> None:
    home = tmp_path / name
    assert register(home, tmp_path, "first", 0.5) == ("1", True)
    assert champion(home, tmp_path) == "first"
    assert [path for path in tmp_path.rglob("*") if path.suffix == ".db"] == [home / "mlflow" / "mlflow.db"]
    files = [path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*") if path.is_file()]
    assert {top for top in files if not top.startswith("got")} == {name, "model.safetensors"}


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def _closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def answering() -> Iterator[tuple[str, list[int]]]:
    """A server that answers with the status in the list."""
    status = [200]

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            self.send_response(status[0])
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", status
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_server_that_is_not_there_is_named_at_once(tmp_path: Path) -> None:
    uri = _closed_port()
    settings = read_settings({"MEDSAM_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": uri})
    with pytest.raises(TrackingError) as error:
        Tracker(settings)
    one_line(error, "MLFLOW_TRACKING_URI", uri, "no connection", "start it or correct the address")
    with pytest.raises(TrackingError):
        download_model("models:/m@champion", uri, tmp_path)


def test_a_server_that_never_answers_is_named(silent_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking_store, "TIMEOUT_S", 0.2)
    with pytest.raises(TrackingError) as error:
        require_tracking(silent_server)
    one_line(error, silent_server, "no answer in time")


@pytest.mark.parametrize(("status", "dead"), [(200, False), (401, False), (404, False), (502, True), (503, True)])
def test_any_answer_but_a_proxys_alone_is_a_server(
    answering: tuple[str, list[int]], status: int, *, dead: bool
) -> None:
    uri, answers = answering
    answers[0] = status
    if not dead:
        require_tracking(uri)
        return
    with pytest.raises(TrackingError, match=f"found status {status}"):
        require_tracking(uri)


def test_a_password_is_not_shown() -> None:
    uri = _closed_port().replace("//", "//user:secret@")
    assert "secret" not in shown(uri)
    with pytest.raises(TrackingError) as error:
        require_tracking(uri)
    assert "secret" not in str(error.value)


def test_a_locked_file_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking_store, "TIMEOUT_S", 0.1)
    file = home / "mlflow" / "mlflow.db"
    database = sqlite3.connect(file)
    database.execute("BEGIN EXCLUSIVE")
    with pytest.raises(TrackingError) as error:
        require_tracking(settings_at(home).tracking_uri)
    database.close()
    one_line(error, str(file), "locked", "wait for the process")


def test_a_file_that_is_no_database_is_named(home: Path) -> None:
    file = home / "mlflow" / "mlflow.db"
    file.write_bytes(b"not a database" * 1000)
    with pytest.raises(TrackingError) as error:
        Tracker(settings_at(home))
    one_line(error, str(file), "not a database")


def test_a_file_that_cannot_be_written_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = home / "mlflow" / "mlflow.db"
    monkeypatch.setattr("os.access", lambda path, _mode: Path(path) != file)  # a superuser writes anything
    with pytest.raises(TrackingError) as error:
        require_tracking(settings_at(home).tracking_uri)
    one_line(error, str(file), "readonly", "let this user write it")


@pytest.mark.parametrize("revision", ["ffffffffffff", "451aebb31d03"])
def test_a_file_of_another_mlflow_is_named(home: Path, revision: str) -> None:
    """A revision that this version does not know, and an early one."""
    file = home / "mlflow" / "mlflow.db"
    with sqlite3.connect(file) as database:
        database.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    # MLflow keeps an open engine for an address that it knows.
    shutil.copytree(home, home.with_name("other"))
    with pytest.raises(TrackingError) as error:
        Tracker(settings_at(home.with_name("other")))
    one_line(error, "another version of MLflow")


def test_settings_of_one_home_differ_by_profile_alone(home: Path) -> None:
    """Deleting one profile's experiment leaves another's alone."""
    settings = settings_at(home)
    other = dataclasses.replace(settings, profile=settings.profile.model_copy(update={"name": "other"}))
    tracker = Tracker(other)
    client = MlflowClient(settings.tracking_uri)
    experiment = client.get_experiment_by_name("repvit-medsam/sample")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    assert Tracker(other).find("first") is None
    tracker.open_run("theirs", "theirs")
    assert client.get_experiment(experiment.experiment_id).lifecycle_stage == "deleted"
