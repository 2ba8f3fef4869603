"""A server that ends as a whole: `python -m pipelines.runs.keeper COMMAND...` runs it and leaves no process behind.

What belongs here: ending every process below a command, when it ends, when this process is told to (Ctrl-C, a closed
terminal, SIGTERM), and when whoever started this process dies. Not here: what the command is.

`dagster dev` starts a webserver, a daemon and code servers, some in sessions of their own, and a signal to it or to
make does not reach them. On Linux this process adopts what loses its parent, so all of them stay below it.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

GENTLY_S = 10.0
"""Seconds that processes have to end after each request, before the kernel ends them."""

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Told(Exception):  # noqa: N818 - no error: somebody asks for the end
    """A signal asked for the end."""


def _told(number: int, _frame: FrameType | None) -> None:
    raise _Told(number)


def _below(ancestor: int) -> list[int]:
    """Return the living processes below one, children and their children."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[0] not in "ZX":
            parents[int(folder.name)] = int(fields[1])
    found, level = [], [ancestor]
    while level:
        level = [process for process, parent in parents.items() if parent in level]
        found += level
    return found


def _reap() -> None:
    """Take the status of every child that has ended, adopted ones too."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _end_all() -> None:
    """End every process below this one: asked twice, then forced."""
    for request in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        end = time.monotonic() + GENTLY_S
        for process in _below(os.getpid()):
            try:
                os.kill(process, request)
            except ProcessLookupError:
                continue
        while _below(os.getpid()) and time.monotonic() < end:
            _reap()
            time.sleep(0.05)
        _reap()


def keep(command: Sequence[str]) -> int:
    """Run a command to its end, or until a signal asks for it; then end whatever it left.

    Args:
        command: Program and arguments.

    Returns:
        The command's exit status; 128 and the signal's number where a signal ended it.
    """
    parent = os.getppid()
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    for number in _SIGNALS:
        # What whoever started this process has switched off, as nohup does, stays off.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _told)
    try:
        # In a session of its own: Ctrl-C reaches this process alone, which then ends the others in order.
        child = subprocess.Popen(command, start_new_session=True)  # noqa: S603 - the user's own command
        status = child.wait() if os.getppid() == parent else 128 + signal.SIGTERM
    except _Told as told:
        status = 128 + int(told.args[0])
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}; run `make setup`\n")
        return 2
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    _end_all()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(keep(sys.argv[1:]))
