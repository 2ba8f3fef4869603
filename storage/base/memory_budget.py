"""A memory limit for threads. What belongs here: which thread may hold how many bytes. Not here: their use."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class MemoryBudget:
    """Limits the bytes that threads hold together. A thread waits until enough is left, or until no bytes are held."""

    def __init__(self, n_bytes: int) -> None:
        """Begin with nothing held.

        Args:
            n_bytes: Most bytes held at once; one thread that needs more may hold them if no other holds any.
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
