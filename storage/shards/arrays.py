"""Sharded zarr v3 arrays whose shards are written whole, once: their layout, metadata and writing.

What belongs here: arrays cut along their first axis, as layouts, blobs and records of blobs. Not here: what the
elements mean (`storage.slices.reader`, `storage.answers.teacher_cache`), which shards a part owns, the bytes of a shard
(`storage.shards.codec`), reading (`storage.shards.reader`).

zarr itself writes the metadata, so that any zarr v3 reader opens the arrays.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import Crc32cCodec
from zarr.storage import MemoryStore

from storage.base.blobs import Blobs
from storage.base.errors import StorageError
from storage.shards.codec import Compression, ShardEncoder, zarr_codec

ARRAY_METADATA: Final = "zarr.json"


@dataclass(frozen=True)
class ArrayLayout:
    """How one array lies in its place.

    Attributes:
        name: Name of the array in its group.
        dtype: numpy name of the element type.
        tail: Shape after axis 0; never cut into chunks.
        chunk: Length of an inner chunk along axis 0, what one checksum and one decompression cover.
        shard: Length of a shard along axis 0, one blob; a multiple of `chunk`.
        level: How hard inner chunks are compressed, as `storage.shards.codec.zarr_codec` takes it.
        compression: How inner chunks are compressed.
    """

    name: str
    dtype: str
    tail: tuple[int, ...]
    chunk: int
    shard: int
    level: int = 1
    compression: Compression = "zstd"

    @property
    def chunks_per_shard(self) -> int:
        """Inner chunks of a shard."""
        return self.shard // self.chunk

    def key(self, shard: int) -> str:
        """Return the key of a shard of this array in its group."""
        return "/".join([self.name, "c", str(shard), *("0" for _ in self.tail)])

    def metadata(self, length: int) -> bytes:
        """Return the content of the array's `zarr.json` for `length` along axis 0."""
        files: dict[str, Any] = {}
        zarr.create_array(
            MemoryStore(files),
            name=self.name,
            shape=(length, *self.tail),
            chunks=(self.chunk, *self.tail),
            shards=(self.shard, *self.tail),
            dtype=self.dtype,
            compressors=[zarr_codec(self.compression, self.level, np.dtype(self.dtype).itemsize), Crc32cCodec()],
            fill_value=0,
        )
        return _content(files, f"{self.name}/{ARRAY_METADATA}")

    def encoder(self) -> ShardEncoder:
        """Return the encoder of one shard."""
        return ShardEncoder(self.compression, self.level, np.dtype(self.dtype).itemsize)

    def encode(self, block: npt.NDArray[Any]) -> bytes:
        """Return the bytes of a shard.

        Args:
            block: (at most shard, *tail) of `dtype`; inner chunks after its end are absent.

        Raises:
            StorageError: If the block has another shape or type.
        """
        if not 0 < len(block) <= self.shard or block.shape[1:] != self.tail or block.dtype != np.dtype(self.dtype):
            raise StorageError(
                f"shard of {self.name}: expected {self.dtype} {(self.shard, *self.tail)} or shorter, found "
                f"{block.dtype} {block.shape}; pass blocks of the array's type"
            )
        encoder = self.encoder()
        for start in range(0, len(block), self.chunk):
            encoder.add(padded(block[start : start + self.chunk], self.chunk))
        return encoder.finish(self.chunks_per_shard)


def padded(values: npt.NDArray[Any], length: int) -> npt.NDArray[Any]:
    """Return values in one piece, filled up with zeros along axis 0 where they are shorter than `length`."""
    if len(values) == length:
        return np.ascontiguousarray(values)
    zeros = np.zeros((length - len(values), *values.shape[1:]), values.dtype)
    return np.concatenate([values, zeros])


def _content(files: Mapping[str, Any], key: str) -> bytes:
    return cast("bytes", files[key].to_bytes())


def group_metadata() -> bytes:
    """Return the content of the `zarr.json` of a group."""
    files: dict[str, Any] = {}
    zarr.create_group(MemoryStore(files))
    return _content(files, ARRAY_METADATA)


@dataclass(frozen=True)
class ShardRecord:
    """A published shard.

    Attributes:
        array: Name of its array.
        shard: Its number along axis 0.
        n_bytes: Size of its blob.
        sha256: Hex digest of its blob.
    """

    array: str
    shard: int
    n_bytes: int
    sha256: str


def record_from(value: Mapping[str, Any]) -> ShardRecord:
    """Return the record that a manifest's or fragment's entry describes; further keys are ignored."""
    return ShardRecord(value["array"], value["shard"], value["n_bytes"], value["sha256"])


def put_shard(group: Blobs, layout: ArrayLayout, shard: int, data: bytes) -> ShardRecord:
    """Publish the bytes of a shard.

    Args:
        group: The group's place.
        layout: The array.
        shard: Number of the shard.
        data: What `encode` or an encoder gave.
    """
    group.put(layout.key(shard), data)
    return ShardRecord(layout.name, shard, len(data), hashlib.sha256(data).hexdigest())


def record_problem(group: Blobs, layout: ArrayLayout, record: ShardRecord) -> str | None:
    """Return why the blob of a recorded shard cannot be used, or None; looks at presence and size only."""
    key = layout.key(record.shard)
    found = group.size(key)
    if found is None:
        return f"{key}: expected {record.n_bytes} bytes, found no file"
    return None if found == record.n_bytes else f"{key}: expected {record.n_bytes} bytes, found {found}"


class ShardWriter:
    """Fills the shards of one flat array that one part owns, in order; holds one shard compressed.

    Every appended run of elements starts on an inner chunk's boundary; what follows its end there is zero.

    Attributes:
        records: What has been published so far.
    """

    def __init__(self, group: Blobs, layout: ArrayLayout, first: int, count: int) -> None:
        self.records: list[ShardRecord] = []
        self._group, self._layout = group, layout
        self._next, self._end = first, first + count
        self._encoder = layout.encoder()

    def append(self, values: npt.NDArray[Any]) -> int:
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
        """Publish the last shard, whose other chunks are absent, and return the records of all."""
        if len(self._encoder):
            self._finish()
        return self.records

    def _finish(self) -> None:
        data = self._encoder.finish(self._layout.chunks_per_shard)
        self.records.append(put_shard(self._group, self._layout, self._next, data))
        self._encoder = self._layout.encoder()
        self._next += 1


def round_up(value: int, unit: int) -> int:
    """Return the smallest multiple of `unit` that is not below `value`."""
    return -(-value // unit) * unit
