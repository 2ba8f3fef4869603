"""Shards kept open between reads. What belongs here: how many, in which process. Not here: what is read from them.

The readers of one store share one such cache, so that a store of many groups stays within the files a process may hold.
They remember shards by weak references, which cost a read nothing but a look: a shard that is let go here is gone.
"""

import os
import weakref
from collections import deque
from dataclasses import dataclass
from typing import Final

from storage.base.blobs import OpenBlob

MAX_OPEN_SHARDS: Final = 256
"""Shards that are kept open at most: many systems let a process hold 1,024 files."""


@dataclass(eq=False, slots=True, weakref_slot=True)
class OpenShard:
    """A shard: its blob; chunk i lies from byte `ends[i]` to byte `ends[i + 1]`."""

    blob: OpenBlob
    ends: memoryview


class OpenShards:
    """Open shards, of which the one opened first is let go first; threads may share it.

    A pickled copy, and a forked child, begin empty: connections do not outlive a fork.
    """

    def __init__(self, limit: int = MAX_OPEN_SHARDS) -> None:
        self._limit = limit
        # Appending to a full one drops the oldest, in one act for all threads.
        self._kept: deque[OpenShard] = deque(maxlen=limit)
        _EVERY.add(self)

    def __reduce__(self) -> tuple[type["OpenShards"], tuple[int]]:
        return OpenShards, (self._limit,)

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, shard: OpenShard) -> None:
        """Keep a shard open; whoever still reads from one let go for it holds it until done."""
        self._kept.append(shard)

    def forget(self) -> None:
        """Let all go."""
        self._kept.clear()


_EVERY: Final["weakref.WeakSet[OpenShards]"] = weakref.WeakSet()


def _forget_every() -> None:
    for opened in list(_EVERY):
        opened.forget()


os.register_at_fork(after_in_child=_forget_every)
