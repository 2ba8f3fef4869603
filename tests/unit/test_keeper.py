"""Servers end as a whole: no process outlives a signal, a dead starter, or its own main process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

ROOT = Path(__file__).parents[2]

SERVER = """
import os, signal, subprocess, sys, time
# A deaf grandchild in a session of its own, as code servers are; its parent ends at once.
deaf = "import signal, time, sys; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)];\\
 open(sys.argv[1] + '/deaf', 'w').write(str(__import__('os').getpid())); time.sleep(600)"
middle = "import subprocess, sys; "
middle += f"subprocess.Popen([sys.executable, '-c', {deaf!r}, sys.argv[1]], start_new_session=True)"
subprocess.run([sys.executable, "-c", middle, sys.argv[1]])
while not os.path.exists(sys.argv[1] + "/deaf") or not open(sys.argv[1] + "/deaf").read():
    time.sleep(0.01)
open(sys.argv[1] + "/server", "w").write(str(os.getpid()))
if sys.argv[2] == "ends":
    sys.exit(7)
time.sleep(600)
"""


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _wait_for(file: Path) -> int:
    """Return the process id that a file comes to hold."""
    end = time.monotonic() + 60
    while not file.is_file() or not file.read_text():
        assert time.monotonic() < end, f"expected a process to write {file.name}, found that none did"
        time.sleep(0.01)
    return int(file.read_text())


@pytest.fixture
def starter(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that keeps a server, as make does, with short patience; its id is in `keeper`."""
    script = (
        "import signal, subprocess, sys; from pathlib import Path\n"
        # Under nohup it would be ignored here, and so by the keeper.
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "keeper = 'import sys; from pipelines.runs import keeper; keeper.GENTLY_S = 0.3; "
        "sys.exit(keeper.keep(sys.argv[1:]))'\n"
        f"child = subprocess.Popen([sys.executable, '-c', keeper, sys.executable, '-c', {SERVER!r}, *sys.argv[1:]])\n"
        "Path(sys.argv[1], 'keeper').write_text(str(child.pid))\n"
        "sys.exit(child.wait())"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path), "stays"], cwd=ROOT)
    yield process
    process.kill()
    process.wait()


def _ended(processes: list[int]) -> bool:
    end = time.monotonic() + 60
    while any(_lives(process) for process in processes):
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_keeper_ends_all_it_keeps(
    starter: "subprocess.Popen[bytes]", tmp_path: Path, number: signal.Signals
) -> None:
    processes = [_wait_for(tmp_path / name) for name in ("server", "deaf", "keeper")]
    os.kill(processes[2], number)
    assert _ended(processes)
    assert starter.wait() == 128 + number


def test_the_death_of_who_started_it_ends_all_it_keeps(starter: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    processes = [_wait_for(tmp_path / name) for name in ("server", "deaf", "keeper")]
    starter.kill()
    assert _ended(processes)


def _children(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.parametrize("killed", ["first", "second"])
def test_killing_a_keeper_ends_all_it_keeps(
    starter: "subprocess.Popen[bytes]", tmp_path: Path, killed: Literal["first", "second"]
) -> None:
    """SIGKILL cannot be handled: the other of the two processes ends what is left."""
    server, deaf, first = [_wait_for(tmp_path / name) for name in ("server", "deaf", "keeper")]
    (second,) = _children(first)
    os.kill(first if killed == "first" else second, signal.SIGKILL)
    assert _ended([server, deaf, first, second])
    assert starter.wait() in (-signal.SIGKILL % 256, 128 + signal.SIGKILL)


def test_what_a_server_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipelines.runs.keeper", sys.executable, "-c", SERVER, str(tmp_path), "ends"]
    script = (
        f"import sys; from pipelines.runs import keeper; keeper.GENTLY_S = 0.3; sys.exit(keeper.keep({command[3:]!r}))"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 7
    assert not _lives(_wait_for(tmp_path / "deaf"))


def test_a_signal_that_was_switched_off_stays_off(tmp_path: Path) -> None:
    """As under nohup: a closed terminal ends nothing."""
    script = (
        "import os, signal, sys, threading; from pipelines.runs import keeper; keeper.GENTLY_S = 0.3\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGHUP)).start()\n"
        "sys.exit(keeper.keep([sys.executable, '-c', 'import time, sys; time.sleep(0.5); sys.exit(3)']))"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 3


def test_a_command_that_is_not_there_is_one_line() -> None:
    command = [sys.executable, "-m", "pipelines.runs.keeper", "/nowhere/dagster"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "/nowhere/dagster: No such file or directory; run `make setup`\n")
