"""Advisory locks between processes; the kernel frees them when their holder dies.

What belongs here: excluding and sharing. Not here: what a lock protects.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.base.errors import BusyError


@contextmanager
def exclusive_lock(path: Path, *, what: str) -> Iterator[None]:
    """Hold the lock on `path` alone for the block.

    Raises:
        BusyError: If another process holds it, alone or shared.
    """
    with _held(path, fcntl.LOCK_EX | fcntl.LOCK_NB, f"{what} is in use"):
        yield


@contextmanager
def shared_lock(path: Path, *, what: str) -> Iterator[None]:
    """Hold the lock on `path` for the block together with other sharers: many writers, whom one publisher excludes.

    Raises:
        BusyError: If another process holds the lock alone.
    """
    with _held(path, fcntl.LOCK_SH | fcntl.LOCK_NB, f"{what} is being planned or published"):
        yield


@contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Hold the lock on `path` alone for the block, waiting for whoever holds it."""
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
            holder = file.read().strip() or "unknown"
            message = f"{activity} by process {holder}; wait for it to end, or stop it, then run again"
            raise BusyError(message) from None
        # Whoever is refused is told the last process that got in.
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
