"""Advisory locks between processes; the kernel frees them when their holder dies.

What belongs here: excluding and sharing. Not here: what a lock protects.
"""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.base.errors import BusyError


@contextmanager
def exclusive_lock(path: Path, *, what: str) -> Iterator[None]:
    """Hold the exclusive lock on `path` for the block.

    Raises:
        BusyError: If another process holds the lock, exclusive or shared.
    """
    with _held(path, fcntl.LOCK_EX | fcntl.LOCK_NB, f"{what} is in use"):
        yield


@contextmanager
def shared_lock(path: Path, *, what: str) -> Iterator[None]:
    """Hold the shared lock on `path` for the block: many writers may share it, a publisher takes it exclusively.

    Raises:
        BusyError: If another process holds the exclusive lock.
    """
    with _held(path, fcntl.LOCK_SH | fcntl.LOCK_NB, f"{what} is being planned or published"):
        yield


@contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Hold the exclusive lock on `path` for the block; wait until other processes have released it."""
    with _held(path, fcntl.LOCK_EX, str(path)):
        yield


@contextmanager
def _held(path: Path, operation: int, activity: str) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, operation)
        except BlockingIOError:
            file.seek(0)
            message = f"{activity} by process {_holder(file.read())}; wait for it to end, or stop it, then run again"
            raise BusyError(message) from None
        # The file names the process and the machine that took the lock last; a refused process reports both.
        file.truncate(0)
        file.write(f"{os.getpid()}\n{socket.gethostname()}")
        file.flush()
        yield


def _holder(text: str) -> str:
    """Return who holds a lock: the process on the first line of its file, and its host if there is a second line."""
    process, _, host = text.strip().partition("\n")
    return f"{process or 'unknown'} on {host}" if host not in ("", socket.gethostname()) else process or "unknown"
