"""The layout of sharded zarr v3 arrays: how they are cut along their first axis. Each shard is written once and whole.

What belongs here: the layout of an array. Not here: what its elements mean, which shards a part owns, the bytes of a
shard (`storage.shards.codec`), writing, reading and the metadata for other readers (the modules beside this one).
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from storage.base.errors import StorageError
from storage.shards.codec import Compression, ShardEncoder

ARRAY_METADATA: Final = "zarr.json"

Elements = npt.NDArray[Any]
"""Values of an array, of the type that its layout names."""


@dataclass(frozen=True)
class ArrayLayout:
    """The layout of one array.

    Attributes:
        name: Name of the array in its group.
        dtype: numpy name of the element type.
        tail: Shape after axis 0; never cut into chunks.
        chunk: Length of an inner chunk along axis 0; an inner chunk has one checksum and is decompressed as a whole.
        shard: Length of a shard along axis 0, a multiple of `chunk`; a shard is one blob.
        level: Compression level of inner chunks, as in `storage.shards.metadata.zarr_codec`.
        compression: Compression of inner chunks.
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

    def encoder(self) -> ShardEncoder:
        """Return the encoder of one shard."""
        return ShardEncoder(self.compression, self.level, np.dtype(self.dtype).itemsize)

    def encode(self, block: Elements) -> bytes:
        """Return the bytes of a shard.

        Args:
            block: (n, *tail) of `dtype`, n at most `shard`; inner chunks after the end of the block are absent.

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


def padded(values: Elements, length: int) -> Elements:
    """Return values as one contiguous array, padded with zeros along axis 0 up to `length`."""
    if len(values) == length:
        return np.ascontiguousarray(values)
    zeros = np.zeros((length - len(values), *values.shape[1:]), values.dtype)
    return np.concatenate([values, zeros])


def round_up(value: int, unit: int) -> int:
    """Return the smallest multiple of `unit` that is not below `value`."""
    return -(-value // unit) * unit
