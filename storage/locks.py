"""Locks that many writers share and one publisher excludes.

What belongs here: the shared side of the lock on a store. Not here: the exclusive side (`storage.atomic`), which takes
the same file.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.errors import BusyError


@contextmanager
def shared_lock(path: Path, *, what: str) -> Iterator[None]:
    """Hold a shared advisory lock on `path` for the block: other sharers may enter, `exclusive_lock` may not.

    Raises:
        BusyError: If another process holds the lock exclusively.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            message = f"{what} is being planned or published by process {holder}; wait for it to end, then run again"
            raise BusyError(message) from None
        # Who is refused the exclusive lock is told a process that shares it.
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
