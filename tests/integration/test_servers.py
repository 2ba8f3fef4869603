"""`make dev` and `make mlflow` leave no process behind. What belongs here: the literal targets, and their end."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.deployment import ROOT, Deployment, deploy

pytestmark = pytest.mark.slow


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _processes(deployment: Deployment) -> dict[int, str]:
    """Return the commands of all living processes that belong to a deployment, whoever their parents are."""
    mark = f"MEDSAM_HOME={deployment.home}\0".encode()
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    return {process: command for process, command in found.items() if command}


def _parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def _wait(condition: Callable[[], bool], seconds: float = 240) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    "ended", ["make", "make killed", "first keeper", "first keeper killed", "second keeper killed"]
)
def test_make_dev_leaves_no_process(tmp_path: Path, ended: str) -> None:
    _starts_and_ends(tmp_path, "dev", ended, least=4)


def test_make_mlflow_leaves_no_process(tmp_path: Path) -> None:
    _starts_and_ends(tmp_path, "mlflow", "make", least=2)


def _starts_and_ends(tmp_path: Path, target: str, ended: str, least: int) -> None:
    deployment, port = deploy(tmp_path / "home"), _free_port()
    command = ["make", "-o", "setup", target, f"BIN={Path(sys.executable).parent}", f"PORT={port}"]
    with (tmp_path / "output").open("w") as output:
        make = subprocess.Popen(
            command, cwd=ROOT, env=deployment.environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        assert _wait(lambda: _answers(port)), (tmp_path / "output").read_text()[-4000:]
        started = _processes(deployment)
        assert len(started) >= least, started
        keepers = sorted(number for number, command in started.items() if "pipelines.runs.keeper" in command)
        first, second = sorted(keepers, key=lambda number: _parent(number) in keepers)
        number = {"first keeper": first, "second keeper": second}.get(ended.removesuffix(" killed"), make.pid)
        os.kill(number, signal.SIGKILL if ended.endswith("killed") else signal.SIGTERM)
        assert _wait(lambda: not _processes(deployment)), _processes(deployment)
        assert not _answers(port)
    finally:
        for number in _processes(deployment):
            os.kill(number, signal.SIGKILL)
        make.kill()
        make.wait()
