"""The bytes of one shard of a standard zarr v3 array, made and read without zarr.

What belongs here: the inner chunks, their checksums and the index after them. Not here: the array of a shard and its
place (`storage.shards.arrays`).

A shard holds its inner chunks one after another, then an index with (offset, size) of each chunk in little-endian u64,
then the crc32c of the index. Chunks after the last one written are absent: their offset and size are 2^64 - 1. An inner
chunk holds its little-endian elements, compressed, then the crc32c of the compressed bytes.
Sources: zarr v3 specification, codecs `sharding_indexed`, `bytes`, `zstd`, `blosc` and `crc32c`.
"""

import struct
from collections.abc import Callable
from typing import Final, Literal, cast

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs import blosc, zstd

Compression = Literal["zstd", "lz4"]

COMPRESSIONS: Final = ("zstd", "lz4")
CRC_BYTES: Final = 4
MAX_LZ4_LEVEL: Final = 9
_LZ4_LEVEL: Final = 5
"""Blosc's level for lz4 in its fast mode, our level 1; our levels above 1 are lz4hc at the same level."""

_ABSENT: Final = 2**64 - 1
"""Offset and size of an absent chunk (zarr v3, codec `sharding_indexed`)."""

_CRC: Final = struct.Struct("<I")
_DECOMPRESS: Final = {"zstd": zstd.decompress, "lz4": blosc.decompress}

Bytes = npt.NDArray[np.uint8]


class ShardError(ValueError):
    """The bytes of a shard are damaged; the message says which."""


def lz4_mode(level: int) -> tuple[Literal["lz4", "lz4hc"], int]:
    """Return blosc's names for a level of lz4: 1 is the fast mode, 2 to 9 the high compression mode of that level."""
    return ("lz4", _LZ4_LEVEL) if level == 1 else ("lz4hc", level)


def _compressor(compression: Compression, level: int, item_bytes: int) -> Callable[[Bytes], bytes]:
    if compression == "zstd":
        return lambda chunk: cast("bytes", zstd.compress(chunk, level))
    name, blosc_level = lz4_mode(level)
    # One thread: Blosc's pool is shared by a whole process, and the callers already run in threads of their own.
    blosc.use_threads = False
    return lambda chunk: cast("bytes", blosc.compress(chunk, name.encode(), blosc_level, 0, 0, item_bytes))


def crc32c(data: bytes | Bytes) -> bytes:
    """Return the CRC-32C of bytes, little-endian, as zarr appends it."""
    return int(google_crc32c.value(data)).to_bytes(CRC_BYTES, "little")


class ShardEncoder:
    """Collects the inner chunks of a shard in order, and holds them compressed."""

    def __init__(self, compression: Compression, level: int, item_bytes: int) -> None:
        """Begin a shard.

        Args:
            compression: Compression of each chunk.
            level: Compression level, as in `storage.shards.metadata.zarr_codec`.
            item_bytes: Size of an element.
        """
        self._compress = _compressor(compression, level, item_bytes)
        self._parts: list[bytes] = []
        self._index: list[int] = []
        self._position = 0

    def __len__(self) -> int:
        return len(self._index) // 2

    def add(self, chunk: npt.NDArray[np.generic]) -> None:
        """Append one inner chunk, contiguous and little-endian."""
        data = self._compress(chunk.reshape(-1).view(np.uint8))
        self._parts += [data, crc32c(data)]
        self._index += [self._position, len(data) + CRC_BYTES]
        self._position += self._index[-1]

    def finish(self, n_chunks: int) -> bytes:
        """Return the bytes of a shard of `n_chunks` inner chunks; those that were not added are absent."""
        absent = [_ABSENT] * (2 * n_chunks - len(self._index))
        entries = np.array([*self._index, *absent], "<u8").tobytes()
        return b"".join([*self._parts, entries, crc32c(entries)])


def index_bytes(n_chunks: int) -> int:
    """Return the size of a shard's index with its checksum."""
    return 16 * n_chunks + CRC_BYTES


def read_index(data: bytes, n_chunks: int, n_bytes: int) -> memoryview:
    """Return the byte boundaries of a shard's chunks, as u64: chunk i lies from boundary i to boundary i + 1.

    Absent chunks, which come only after the last one written, are empty: their two boundaries are equal.

    Args:
        data: The last `index_bytes(n_chunks)` bytes of the shard.
        n_chunks: Inner chunks of the shard.
        n_bytes: Size of the shard.

    Raises:
        ShardError: If the index is cut, fails its checksum, or its chunks do not fill the shard one after another.
    """
    if len(data) != index_bytes(n_chunks):
        raise ShardError(f"expected an index of {index_bytes(n_chunks)} bytes, found {len(data)}")
    entries = data[:-CRC_BYTES]
    if crc32c(entries) != data[-CRC_BYTES:]:
        raise ShardError("the shard's index fails its checksum")
    offsets, sizes = np.frombuffer(entries, "<u8").astype(np.uint64).reshape(-1, 2).T
    there = int(np.count_nonzero(sizes != _ABSENT))
    ends = np.full(n_chunks + 1, n_bytes - len(data), np.uint64)
    ends[:there] = offsets[:there]
    whole = there > 0 and ends[0] == 0 and (offsets[there:] == _ABSENT).all() and (sizes[there:] == _ABSENT).all()
    if not whole or (sizes[:there] < CRC_BYTES).any() or (ends[:there] + sizes[:there] != ends[1 : there + 1]).any():
        raise ShardError("the shard's index points outside the shard, or to a chunk that is absent")
    return ends.data


def decode_chunk(data: bytes, start: int, stop: int, out: npt.NDArray[np.generic], compression: Compression) -> None:
    """Decompress one inner chunk into the caller's memory.

    Args:
        data: Bytes that hold the compressed chunk and its checksum.
        start: First byte of the chunk in `data`.
        stop: One past its last byte.
        out: Contiguous; its size is exactly that of the decompressed chunk.
        compression: Compression of the chunk.

    Raises:
        ShardError: If the chunk is absent, or its bytes fail their checksum or do not decompress.
    """
    if start == stop:
        raise ShardError("expected a written inner chunk, found an absent one")
    if stop > len(data):
        raise ShardError(f"expected {stop - start} bytes of an inner chunk, found {max(0, len(data) - start)}")
    payload = np.frombuffer(data, np.uint8, stop - start - CRC_BYTES, start)
    if google_crc32c.value(payload) != _CRC.unpack_from(data, stop - CRC_BYTES)[0]:
        raise ShardError("an inner chunk fails its checksum")
    try:
        _DECOMPRESS[compression](payload, out)
    except (RuntimeError, ValueError) as error:
        raise ShardError(f"an inner chunk does not decompress: {error}") from error
