"""What goes wrong outside the project is one message and an exit status; a defect keeps its traceback."""

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from medsam_core.base.files import atomic_file as model_file
from pipelines.base.exit_status import run_command
from pipelines.base.profile import ProfileError
from pipelines.base.settings import InputError
from pipelines.base.terminal import printable
from pipelines.cli import main
from storage.base.atomic import atomic_file, create_bytes, write_bytes
from storage.base.errors import BusyError, IntegrityError

COMMANDS = {
    "init": [],
    "sample": [],
    "summary": [],
    "mlflow": [],
    "predict": ["-i", "in", "-o", "out", "--model", "m"],
    "evaluate": ["--data", "in", "-o", "out", "--model", "m"],
    "verify": [],
    "erase": ["US/a"],
    "make-teacher": ["-o", "t", "--work", "w"],
    "teacher": ["lite_medsam"],
}


def failing(error: BaseException) -> Callable[[], int]:
    def act() -> int:
        raise error

    return act


def system_error(number: int, *names: str) -> OSError:
    return OSError(number, os.strerror(number), *names)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (system_error(errno.ENOSPC, "/out/a"), 2, "/out/a: No space left on device; free some space"),
        (system_error(errno.EACCES, "/out/a"), 2, "/out/a: Permission denied; give access"),
        (system_error(errno.EROFS, "/out/a"), 2, "/out/a: Read-only file system; name a place"),
        (system_error(errno.ENOTDIR, "/out/a"), 2, "/out/a: Not a directory; a file lies"),
        (system_error(errno.EISDIR, "/out/a"), 2, "/out/a: Is a directory; a folder lies"),
        (system_error(errno.ENOENT, "/out/a"), 2, "/out/a: No such file or directory"),
        (system_error(errno.EIO), 2, "medsam act: Input/output error"),
        (system_error(errno.EACCES, "a\nb\udcb3"), 2, "a\\nb\\udcb3: Permission denied"),
        (NotADirectoryError("expected a folder of npz files, found no folder x"), 2, "found no folder x"),
        (InputError("--model: expected"), 2, "--model: expected"),
        (ProfileError("expected"), 2, "expected"),
        (BusyError("expected"), 2, "expected"),
        (IntegrityError("expected"), 2, "expected"),
        (MemoryError(), 2, "more memory than there is"),
        (KeyboardInterrupt(), 130, "stopped"),
        (MlflowException("API request failed\nTraceback of the server"), 2, "MLFLOW_TRACKING_URI: API request failed"),
    ],
)
def test_an_error_of_the_surroundings_is_one_line(
    error: BaseException, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("act", failing(error)) == status
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("medsam act: ")
    assert said in lines[0]


def test_an_error_that_came_of_a_services_error_names_the_service(capsys: pytest.CaptureFixture[str]) -> None:
    error = RuntimeError("could not log")
    error.__cause__ = MlflowException("down")
    assert run_command("act", failing(error)) == 2
    assert "MLFLOW_TRACKING_URI: could not log" in capsys.readouterr().err


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command("act", failing(ZeroDivisionError()))


@pytest.mark.parametrize("home", ["a file", "below a file"])
@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_says_in_one_line_that_its_state_cannot_be_there(
    command: str, home: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MEDSAM_HOME", str(tmp_path / "file" / ("x" if home == "below a file" else "")))
    arguments = ["-o", "file/t", "--work", "file/w"] if command == "make-teacher" else COMMANDS[command]
    assert main([command, *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("medsam ")] == lines[-1:]
    assert lines[-1].startswith(f"medsam {command}: ")


def script(code: str) -> str:
    return f"import sys\nfrom pipelines.base.exit_status import run_command\n{code}"


MANY_LINES = """
from pipelines.base.terminal import log
sys.exit(run_command("act", lambda: [log("x" * 1000) for _ in range(10_000)] and 0))
"""


def test_a_reader_that_goes_away_ends_a_command_without_a_word() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", script(MANY_LINES)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_output_that_nothing_can_take_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", script(MANY_LINES)], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (2, "medsam act: No space left on device; free some space\n")


def test_a_name_of_another_encoding_is_printed_by_a_strict_terminal() -> None:
    code = 'from pipelines.base.terminal import log\nsys.exit(run_command("act", lambda: log("a\\udcb3 é") or 0))'
    for encoding, shown in (("utf-8:strict", "a\\udcb3 é"), ("ascii:strict", "a\\udcb3 \\xe9")):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        done = subprocess.run([sys.executable, "-c", script(code)], capture_output=True, env=environment, check=False)
        assert (done.returncode, done.stdout.decode().strip()) == (0, shown)


@pytest.mark.parametrize(
    ("name", "shown"), [("US 超声.npz", "US 超声.npz"), ("a\nb\x1b[1m", "a\\nb\\x1b[1m"), ("\udcb3", "\\udcb3")]
)
def test_a_name_is_shown_in_one_line(name: str, shown: str) -> None:
    assert printable(name) == shown


@pytest.mark.parametrize("write", [write_bytes, create_bytes])
def test_a_full_disk_names_the_file_that_it_cannot_take(write: Callable[[Path, bytes], object], tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write(tmp_path / "a", bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("writer", [atomic_file, model_file])
def test_a_folder_in_the_way_of_a_file_is_named_and_stays(writer: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(IsADirectoryError) as caught, writer(tmp_path / "a") as file:  # type: ignore[attr-defined]
        file.write(b"x")
    assert str(tmp_path / "a") in (caught.value.filename, caught.value.filename2)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
