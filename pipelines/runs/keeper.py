"""Running a server without leaving processes behind: `python -m pipelines.runs.keeper COMMAND...`.

What belongs here: ending all descendants of a command when the command ends, when this process receives a signal
(Ctrl-C, a closed terminal, SIGTERM), when it is killed, and when its parent process dies. Not here: the commands.

`dagster dev` starts a webserver, a daemon and code servers, some of them in their own sessions; a signal to it or to
make does not reach them. On Linux this process adopts orphaned descendants, so all of them stay below it. On systems
other than Linux, signals still end the command.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

GENTLY_S = 10.0
"""Seconds that processes have to end after each signal, before SIGKILL ends them."""

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _StopRequested(Exception):  # noqa: N818 - no error: a signal asks for the end
    """A signal asked this process to end."""


def _request_stop(number: int, _frame: FrameType | None) -> None:
    raise _StopRequested(number)


def _below(ancestor: int) -> list[int]:
    """Return the running descendants of a process."""
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
    """Collect the exit status of every child that has ended, adopted children too."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _end_all() -> None:
    """End every descendant of this process: two signals that it may handle, then SIGKILL."""
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


def _bind() -> None:
    """Adopt orphaned descendants from now on, and ask for SIGTERM when the parent process dies (Linux only)."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _on_signals(handler: Callable[[int, FrameType | None], None]) -> None:
    """Handle the signals that ask for the end; one that the parent has set to be ignored, as nohup does, stays so."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _end_undisturbed() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    _end_all()


def _run(command: Sequence[str], parent: int) -> int:
    """Run a command in the second process until it ends or a signal arrives; then end all processes that it left."""
    _bind()
    try:
        _on_signals(_request_stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        # In its own session: Ctrl-C reaches only the first process, which passes it on.
        child = subprocess.Popen(command, start_new_session=True)  # noqa: S603 - the user's own command
        status = child.wait() if os.getppid() == parent else 128 + signal.SIGTERM
    except _StopRequested as request:
        status = 128 + int(request.args[0])
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}; run `make setup`\n".encode())
        return 2
    _end_undisturbed()
    return status if status >= 0 else 128 - status


def _wait(process: int, parent: int) -> int:
    """Wait for the second process in the first one, passing signals on to it; return its exit status."""

    def pass_on(number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)

    _on_signals(pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    if os.getppid() != parent:
        pass_on(signal.SIGTERM, None)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def keep(command: Sequence[str]) -> int:
    """Run a command until it ends or a signal arrives; then end all processes that it left.

    A second process below this one runs the command. If either of the two is killed by SIGKILL, which no process can
    handle, the other ends what is left: the second one because its parent died, the first one because it adopts them.

    Args:
        command: Program and arguments.

    Returns:
        The exit status of the command; 128 + the number of the signal if a signal ended it.
    """
    parent, first = os.getppid(), os.getpid()
    _bind()
    # Until both processes handle them: a signal that came between would end one of them alone.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    second = os.fork()
    if second == 0:
        os.setsid()
        status = 1
        try:
            status = _run(command, first)
        finally:
            # Never back into the code of the process that was forked.
            os._exit(status)
    status = _wait(second, parent)
    _end_undisturbed()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(keep(sys.argv[1:]))
