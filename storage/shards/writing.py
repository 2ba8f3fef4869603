"""Writing whole shards. What belongs here: publishing a shard, cutting runs of elements into the shards of a part.

Not here: what commits a part (`storage.shards.parts`), the bytes of a shard (`storage.shards.codec`).
"""

import hashlib

from storage.base.blobs import Blobs
from storage.base.errors import StorageError
from storage.shards.arrays import ArrayLayout, Elements, padded
from storage.shards.fragments import ShardRecord


def put_shard(group: Blobs, layout: ArrayLayout, shard: int, data: bytes) -> ShardRecord:
    """Publish the bytes of a shard.

    Args:
        group: The group's place.
        layout: The array.
        shard: Number of the shard.
        data: The bytes of the shard, as `ArrayLayout.encode` or a `ShardEncoder` returns them.
    """
    group.put(layout.key(shard), data)
    return ShardRecord(layout.name, shard, len(data), hashlib.sha256(data).hexdigest())


class ShardWriter:
    """Writes, in order, the shards that one part owns of one flat array; holds one compressed shard in memory.

    Every appended run of elements starts at the boundary of an inner chunk; its last inner chunk is padded with zeros.

    Attributes:
        records: The shards published so far.
    """

    def __init__(self, group: Blobs, layout: ArrayLayout, first: int, count: int) -> None:
        self.records: list[ShardRecord] = []
        self._group, self._layout = group, layout
        self._next, self._end = first, first + count
        self._encoder = layout.encoder()

    def append(self, values: Elements) -> int:
        """Store a flat run of elements and return the element offset it starts at.

        Raises:
            StorageError: If the part's shards cannot hold it.
        """
        layout = self._layout
        offset = self._next * layout.shard + len(self._encoder) * layout.chunk
        if offset + values.size > self._end * layout.shard:
            raise StorageError(
                f"{layout.name}: expected at most {self._end * layout.shard - offset} elements more in this part, "
                f"found {values.size}; plan the store again"
            )
        for start in range(0, values.size, layout.chunk):
            self._encoder.add(padded(values[start : start + layout.chunk], layout.chunk))
            if len(self._encoder) == layout.chunks_per_shard:
                self._finish()
        return offset

    def close(self) -> list[ShardRecord]:
        """Publish the last shard, whose remaining chunks are absent, and return the records of all shards."""
        if len(self._encoder):
            self._finish()
        return self.records

    def _finish(self) -> None:
        data = self._encoder.finish(self._layout.chunks_per_shard)
        self.records.append(put_shard(self._group, self._layout, self._next, data))
        self._encoder = self._layout.encoder()
        self._next += 1
