"""Reading sharded arrays under a manifest, a few chunks at a time, near the speed of decompression.

What belongs here: checked random access to published shards. Not here: which shards are open (`storage.open_shards`),
writing (`storage.shards`), what elements mean.

A zarr reader takes a missing shard for zeros and reports no error; here a read is refused unless the manifest names
every shard it touches and each has the size recorded for it. Flipped bytes fail a crc32c, of their chunk or the index.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.blobs import Blobs, OpenBlob
from storage.errors import IntegrityError
from storage.open_shards import OpenShard, OpenShards
from storage.shard_codec import ShardError, decode_chunk, index_bytes, read_index
from storage.shards import ArrayLayout


class ShardReader:
    """Reads the arrays of one published group, refusing whatever its manifest does not vouch for.

    Threads may share it. Shards are opened when first read from; a pickled copy, and a forked child, open their own.
    """

    def __init__(
        self,
        group: Blobs,
        layouts: Sequence[ArrayLayout],
        shards: Iterable[Mapping[str, Any]],
        remedy: str,
        opened: OpenShards | None = None,
    ) -> None:
        """Prepare reading; nothing is opened yet.

        Args:
            group: The group's place.
            layouts: Its arrays, as the manifest describes them.
            shards: The manifest's entries: the fields of a `ShardRecord`, and `part_id`.
            remedy: What a user runs to have a damaged part written again; ends every error.
            opened: Where open shards are kept; None: by this reader alone.
        """
        self._group, self._remedy = group, remedy
        self._layouts = {layout.name: layout for layout in layouts}
        self._records = {(shard["array"], shard["shard"]): (shard["n_bytes"], shard["part_id"]) for shard in shards}
        self._url = group.url
        self._opened = OpenShards() if opened is None else opened

    def read(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Return elements `start:stop` along axis 0 of an array, (stop - start, *tail).

        Raises:
            IntegrityError: If a shard is not named by the manifest, is missing or cut, or fails its checksum.
        """
        layout = self._layouts[name]
        if start == stop:
            return np.empty((0, *layout.tail), layout.dtype)
        chunk, per_shard = layout.chunk, layout.chunks_per_shard
        first, last = start // chunk, -(-stop // chunk)
        if last - first > per_shard:
            # Wrong offsets may ask for more memory than there is.
            for shard in range(first // per_shard, -(-last // per_shard)):
                self._require_named(layout, shard)
        values = np.empty(((last - first) * chunk, *layout.tail), layout.dtype)
        out = values.view(np.uint8).reshape(last - first, -1)
        begin = first
        while begin < last:
            shard, at = divmod(begin, per_shard)
            end = min(last, begin - at + per_shard)
            self._decode(layout, shard, at, out[begin - first : end - first])
            begin = end
        return values[start - first * chunk : stop - first * chunk]

    def _decode(self, layout: ArrayLayout, number: int, first: int, out: npt.NDArray[np.uint8]) -> None:
        """Decode as many chunks of a shard as `out` has rows, from `first` on, read in one piece."""
        try:
            shard = self._shard(layout, number)
            ends = shard.ends[first : first + len(out) + 1].tolist()
            origin = ends[0]
            data = _exactly(shard.blob, origin, ends[-1] - origin)
            for row, chunk in enumerate(out):
                decode_chunk(data, ends[row] - origin, ends[row + 1] - origin, chunk, layout.compression)
        except ShardError as error:
            raise self._damaged(layout, number, str(error)) from error

    def _shard(self, layout: ArrayLayout, number: int) -> OpenShard:
        key = (self._url, layout.name, number)
        shard = self._opened.get(key)
        if shard is None:
            shard = self._open(layout, number)
            self._opened.keep(key, shard)
        return shard

    def _require_named(self, layout: ArrayLayout, number: int) -> None:
        if (layout.name, number) not in self._records:
            raise IntegrityError(
                f"{self._url}/{layout.name}: the manifest names no shard {number}, so nothing vouches for its "
                f"content; the caller's offsets are of another state of the store: read them again, or {self._remedy}"
            )

    def _open(self, layout: ArrayLayout, number: int) -> OpenShard:
        self._require_named(layout, number)
        expected = self._records[layout.name, number][0]
        try:
            blob = self._group.open(layout.key(number))
        except FileNotFoundError as error:
            raise ShardError(f"expected {expected} bytes, found no file") from error
        if blob.n_bytes != expected:
            raise ShardError(f"expected {expected} bytes, found {blob.n_bytes}")
        size = index_bytes(layout.chunks_per_shard)
        footer = _exactly(blob, expected - size, size)
        return OpenShard(blob, read_index(footer, layout.chunks_per_shard, expected))

    def _damaged(self, layout: ArrayLayout, shard: int, problem: str) -> IntegrityError:
        part = self._records[layout.name, shard][1]
        return IntegrityError(
            f"{self._url}/{layout.key(shard)}: {problem}; delete parts/{part}.json in {self._url} and {self._remedy}"
        )


def _exactly(blob: OpenBlob, start: int, n_bytes: int) -> bytes:
    data = blob.read(start, n_bytes)
    if len(data) != n_bytes:
        raise ShardError(f"expected {n_bytes} bytes from byte {start}, found {len(data)}")
    return data
