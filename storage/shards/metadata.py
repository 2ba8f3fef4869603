"""The `zarr.json` files, which let any zarr v3 reader open sharded arrays.

What belongs here: all code that imports zarr, which writes this metadata. Not here: reading and writing elements, which
need no zarr (`storage.shards.reader`, `storage.shards.writing`).
"""

from collections.abc import Iterable
from typing import Protocol

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from storage.shards.arrays import ARRAY_METADATA, ArrayLayout
from storage.shards.codec import Compression, lz4_mode


class _Buffer(Protocol):
    """A value in zarr's memory store."""

    def to_bytes(self) -> bytes: ...


def zarr_codec(compression: Compression, level: int, item_bytes: int) -> BloscCodec | ZstdCodec:
    """Return the codec of inner chunks for the array's metadata.

    Args:
        compression: `zstd`, or `lz4` in blosc's frame.
        level: Level of zstd. For lz4, 1 is the fast mode, and 2 to 9 are the levels of its high compression mode.
        item_bytes: Size of an element.
    """
    if compression == "zstd":
        return ZstdCodec(level=level)
    name, blosc_level = lz4_mode(level)
    return BloscCodec(cname=name, clevel=blosc_level, shuffle="noshuffle", typesize=item_bytes)


def array_metadata(layout: ArrayLayout, length: int) -> bytes:
    """Return the content of an array's `zarr.json` for `length` along axis 0."""
    files: dict[str, _Buffer] = {}
    zarr.create_array(
        MemoryStore(files),
        name=layout.name,
        shape=(length, *layout.tail),
        chunks=(layout.chunk, *layout.tail),
        shards=(layout.shard, *layout.tail),
        dtype=layout.dtype,
        compressors=[zarr_codec(layout.compression, layout.level, np.dtype(layout.dtype).itemsize), Crc32cCodec()],
        fill_value=0,
    )
    return files[f"{layout.name}/{ARRAY_METADATA}"].to_bytes()


def group_metadata() -> bytes:
    """Return the content of the `zarr.json` of a group."""
    files: dict[str, _Buffer] = {}
    zarr.create_group(MemoryStore(files))
    return files[ARRAY_METADATA].to_bytes()


def metadata_files(arrays: Iterable[tuple[ArrayLayout, int]]) -> dict[str, bytes]:
    """Return the `zarr.json` files of a group, by key, for its arrays and the length of each along axis 0."""
    files = {f"{layout.name}/{ARRAY_METADATA}": array_metadata(layout, length) for layout, length in arrays}
    return {ARRAY_METADATA: group_metadata(), **files}
