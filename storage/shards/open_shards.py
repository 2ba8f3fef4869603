"""A cache of open shards. What belongs here: which shards stay open in a process. Not here: reading from them.

All readers of one store share one such cache, so that a store of many groups stays below the limit of open files. The
readers hold weak references to shards, which are fast to follow: when this cache drops a shard, they see it as closed.
"""

import os
import weakref
from collections import deque
from dataclasses import dataclass
from typing import Final

from storage.base.blobs import OpenBlob

MAX_OPEN_SHARDS: Final = 256
"""Most shards that stay open; many systems limit a process to 1,024 open files."""


@dataclass(eq=False, slots=True, weakref_slot=True)
class OpenShard:
    """An open shard: its blob, and the boundaries of its chunks. Chunk i lies from byte `ends[i]` to `ends[i + 1]`."""

    blob: OpenBlob
    ends: memoryview


class OpenShards:
    """A first-in, first-out cache of open shards; threads may share it.

    A pickled copy and a forked child begin empty, because connections do not survive a fork.
    """

    def __init__(self, limit: int = MAX_OPEN_SHARDS) -> None:
        self._limit = limit
        # Appending to a full deque drops the oldest item, atomically for all threads.
        self._kept: deque[OpenShard] = deque(maxlen=limit)
        _EVERY.add(self)

    def __reduce__(self) -> tuple[type["OpenShards"], tuple[int]]:
        return OpenShards, (self._limit,)

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, shard: OpenShard) -> None:
        """Keep a shard open. If another shard is dropped for it, a thread that still reads from that one keeps it."""
        self._kept.append(shard)

    def forget(self) -> None:
        """Drop all shards."""
        self._kept.clear()


_EVERY: Final["weakref.WeakSet[OpenShards]"] = weakref.WeakSet()


def _forget_every() -> None:
    for opened in list(_EVERY):
        opened.forget()


os.register_at_fork(after_in_child=_forget_every)
