"""Memory shared out among threads. What belongs here: who may hold how many bytes. Not here: what for."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class MemoryBudget:
    """Bytes that threads hold together; who wants more than is left waits, unless nobody holds any."""

    def __init__(self, n_bytes: int) -> None:
        """Begin with nothing held.

        Args:
            n_bytes: Most bytes held at once, but for a single holder of more.
        """
        self._limit, self._held = n_bytes, 0
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, n_bytes: int) -> Iterator[None]:
        """Hold bytes for the block, once enough is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._held == 0 or self._held + n_bytes <= self._limit)
            self._held += n_bytes
        try:
            yield
        finally:
            with self._changed:
                self._held -= n_bytes
                self._changed.notify_all()
