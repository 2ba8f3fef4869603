"""Progress of long reads. What belongs here: log lines at intervals. Not here: reading."""

import time
from collections.abc import Callable

Log = Callable[[str], None]

EVERY_S = 10.0
"""Seconds between two lines."""


class ByteProgress:
    """Called with (bytes read, bytes to read); logs the progress at intervals."""

    def __init__(self, what: str, log: Log, every_s: float = EVERY_S) -> None:
        self._what, self._log, self._every_s = what, log, every_s
        self._next = time.monotonic() + every_s

    def __call__(self, done: int, total: int) -> None:
        """Log the progress if the last line is old enough."""
        now = time.monotonic()
        if now >= self._next and total:
            self._next = now + self._every_s
            self._log(f"{self._what}: {done} of {total} bytes read, {100 * done // total} %")
