"""A trainer dies with the process that asked for it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from medsam_core.training import parent_watch

CHILD = """
import sys, time
from pathlib import Path
from medsam_core.training.parent_watch import require_parent
require_parent(interval_s=float(sys.argv[2]))
Path(sys.argv[1]).write_text("ready")
time.sleep(60)
"""

PARENT = """
import subprocess, sys
from pathlib import Path
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2] + "/ready", sys.argv[3]])
Path(sys.argv[2], "child").write_text(str(child.pid))
child.wait()
"""


def _wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def _alive(process: int) -> bool:
    return parent_watch._birth(process) is not None


def _start(folder: Path, environment: dict[str, str], interval_s: float) -> tuple[subprocess.Popen[bytes], int]:
    command = [sys.executable, "-c", PARENT, CHILD, str(folder), str(interval_s)]
    parent = subprocess.Popen(command, env={**os.environ, **environment})
    _wait_for((folder / "ready").exists, "the child never started")
    return parent, int((folder / "child").read_text())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a child at once")
def test_the_kernel_kills_the_trainer_with_its_parent(tmp_path: Path) -> None:
    parent, child = _start(tmp_path, {}, interval_s=3600)
    assert _alive(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _wait_for(lambda: not _alive(child), "the child outlived its parent")


def test_the_trainer_dies_with_an_ancestor_that_its_parent_survives(tmp_path: Path) -> None:
    ancestor = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    parent, child = _start(tmp_path, {parent_watch.PARENT_VARIABLE: str(ancestor.pid)}, 0.05)
    assert _alive(child)
    ancestor.kill()
    ancestor.wait()
    assert parent.wait(timeout=30) == 0
    assert not _alive(child)


def test_a_dead_ancestor_is_refused() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    command = [sys.executable, "-c", CHILD, "/dev/null", "1"]
    environment = {**os.environ, parent_watch.PARENT_VARIABLE: str(ended.pid)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "found that one has died" in done.stderr
