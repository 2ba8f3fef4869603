"""Shards kept open between reads. What belongs here: how many, in which process. Not here: what is read from them.

The readers of one store share one such cache, so that a store of many groups stays within the files a process may hold.
"""

import os
import threading
from collections import OrderedDict
from typing import Any, Final, NamedTuple

from storage.blobs import OpenBlob

MAX_OPEN_SHARDS: Final = 256
"""Shards that are kept open at most: many systems let a process hold 1,024 files."""

ShardKey = tuple[str, str, int]
"""Address of the group, name of the array, number of the shard."""


class OpenShard(NamedTuple):
    """A shard: its blob; chunk i lies from byte `ends[i]` to byte `ends[i + 1]`."""

    blob: OpenBlob
    ends: memoryview


class OpenShards:
    """Open shards, of which the least recently read is let go first; threads may share it.

    A pickled copy, and a forked child, begin empty: neither connections nor locks outlive a fork.
    """

    def __init__(self, limit: int = MAX_OPEN_SHARDS) -> None:
        self._limit = limit
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {"_limit": self._limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_limit"])  # type: ignore[misc]

    def __len__(self) -> int:
        return len(self._shards)

    def _forget(self) -> None:
        self._shards: OrderedDict[ShardKey, OpenShard] = OrderedDict()
        self._lock = threading.Lock()
        self._process = os.getpid()

    def get(self, key: ShardKey) -> OpenShard | None:
        """Return a shard that is open in this process, else None."""
        if self._process != os.getpid():
            self._forget()
        with self._lock:
            shard = self._shards.get(key)
            if shard is not None:
                self._shards.move_to_end(key)
        return shard

    def keep(self, key: ShardKey, shard: OpenShard) -> None:
        """Keep a shard open; whoever still reads from one let go for it holds it until done."""
        with self._lock:
            self._shards[key] = shard
            if len(self._shards) > self._limit:
                self._shards.popitem(last=False)
