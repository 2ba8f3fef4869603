"""Reading published sharded arrays, a few chunks at a time, near the speed of decompression.

What belongs here: checked random access to published shards. Not here: which shards stay open
(`storage.shards.open_shards`), writing (`storage.shards.writing`), what elements mean.

A zarr reader returns zeros for a missing shard and reports no error. Here a read fails unless the manifest lists every
shard that it needs and each shard has the recorded size. Altered bytes fail the crc32c of their chunk or of the index.
"""

import weakref
from collections.abc import Iterable, Sequence

import numpy as np

from storage.base.blobs import Blobs
from storage.base.errors import IntegrityError
from storage.shards.arrays import ArrayLayout, Elements
from storage.shards.codec import ShardError, decode_chunk, index_bytes, read_index
from storage.shards.fragments import Fragment
from storage.shards.open_shards import OpenShard, OpenShards


class _Array:
    """One array of a group, with precomputed values that every read needs."""

    def __init__(self, layout: ArrayLayout) -> None:
        self.layout = layout
        self.chunk = layout.chunk
        self.per_shard = layout.chunks_per_shard
        self.chunk_shape = (layout.chunk, *layout.tail)
        self.dtype = np.dtype(layout.dtype)
        self.compression = layout.compression
        self.known: dict[int, weakref.ref[OpenShard]] = {}
        """Weak references to opened shards; `OpenShards` keeps them open."""

    def __reduce__(self) -> tuple[type["_Array"], tuple[ArrayLayout]]:
        return _Array, (self.layout,)


class ShardReader:
    """Reads the arrays of one published group; refuses shards that the manifest does not list.

    Threads may share a reader. A shard is opened at its first read; a pickled copy and a forked child open their own.
    """

    def __init__(
        self,
        group: Blobs,
        layouts: Sequence[ArrayLayout],
        fragments: Iterable[Fragment],
        remedy: str,
        opened: OpenShards | None = None,
    ) -> None:
        """Prepare reading; nothing is opened yet.

        Args:
            group: The group's place.
            layouts: Its arrays, as the manifest describes them.
            fragments: Fragments of the parts in its manifest.
            remedy: What a user should do to have a damaged part written again; ends every error message.
            opened: The cache of open shards; None: the reader has its own.
        """
        self._group, self._remedy = group, remedy
        self._arrays = {layout.name: _Array(layout) for layout in layouts}
        self._records = {
            (record.array, record.shard): (record.n_bytes, fragment.part_id)
            for fragment in fragments
            for record in fragment.shards
        }
        self._url = group.url
        self._opened = OpenShards() if opened is None else opened

    def read(self, name: str, start: int, stop: int) -> Elements:
        """Return elements `start:stop` along axis 0 of an array, (stop - start, *tail).

        Raises:
            IntegrityError: If a shard is not named by the manifest, is missing or cut, or fails its checksum.
        """
        array = self._arrays[name]
        number, begin = divmod(start, array.chunk)
        end = begin + stop - start
        if not begin < end <= array.chunk:
            return self._many(array, number, -(-stop // array.chunk))[begin:end]
        # Most reads need one chunk, so this path makes as few calls as possible.
        shard_number, at = divmod(number, array.per_shard)
        values = np.empty(array.chunk_shape, array.dtype)
        try:
            known = array.known.get(shard_number)
            shard = (known() if known else None) or self._open(array, shard_number)
            ends = shard.ends
            origin = ends[at]
            size = ends[at + 1] - origin
            decode_chunk(shard.blob.read(origin, size), 0, size, values, array.compression)
        except ShardError as error:
            raise self._damaged(array, shard_number, str(error)) from error
        return values if end - begin == array.chunk else values[begin:end]

    def _many(self, array: _Array, first: int, last: int) -> Elements:
        """Return the elements of inner chunks `first:last`."""
        if last - first > array.per_shard:
            # Checked first: wrong offsets could request more memory than the machine has.
            for shard in range(first // array.per_shard, -(-last // array.per_shard)):
                self._require_named(array, shard)
        values = np.empty(((last - first) * array.chunk, *array.chunk_shape[1:]), array.dtype)
        chunks = values.reshape(last - first, *array.chunk_shape)
        begin = first
        while begin < last:
            end = min(last, begin - begin % array.per_shard + array.per_shard)
            self._decode(array, begin, chunks[begin - first : end - first])
            begin = end
        return values

    def _decode(self, array: _Array, first: int, out: Elements) -> None:
        """Read the chunks of one shard from `first` on in one piece, and decode as many as `out` holds."""
        shard_number, at = divmod(first, array.per_shard)
        try:
            known = array.known.get(shard_number)
            shard = (known() if known else None) or self._open(array, shard_number)
            ends = shard.ends[at : at + len(out) + 1].tolist()
            data = shard.blob.read(ends[0], ends[-1] - ends[0])
            for row, chunk in enumerate(out):
                decode_chunk(data, ends[row] - ends[0], ends[row + 1] - ends[0], chunk, array.compression)
        except ShardError as error:
            raise self._damaged(array, shard_number, str(error)) from error

    def _require_named(self, array: _Array, number: int) -> None:
        if (array.layout.name, number) not in self._records:
            raise IntegrityError(
                f"{self._url}/{array.layout.name}: the manifest names no shard {number}, so it is not published; "
                f"the offsets belong to another state of the store: load them again, or {self._remedy}"
            )

    def _open(self, array: _Array, number: int) -> OpenShard:
        self._require_named(array, number)
        expected = self._records[array.layout.name, number][0]
        try:
            blob = self._group.open(array.layout.key(number))
        except FileNotFoundError as error:
            raise ShardError(f"expected {expected} bytes, found no file") from error
        if blob.n_bytes != expected:
            raise ShardError(f"expected {expected} bytes, found {blob.n_bytes}")
        size = index_bytes(array.per_shard)
        footer = blob.read(expected - size, size)
        shard = OpenShard(blob, read_index(footer, array.per_shard, expected))
        self._opened.keep(shard)
        array.known[number] = weakref.ref(shard)
        return shard

    def _damaged(self, array: _Array, shard: int, problem: str) -> IntegrityError:
        part = self._records[array.layout.name, shard][1]
        return IntegrityError(
            f"{self._url}/{array.layout.key(shard)}: {problem}; delete parts/{part}.json in {self._url} and "
            f"{self._remedy}"
        )
