"""The configuration of slice stores. What belongs here: their arrays, their settings. Not here: their content."""

from dataclasses import dataclass
from typing import Final

from storage.shards.arrays import ArrayLayout
from storage.shards.codec import COMPRESSIONS, MAX_LZ4_LEVEL, Compression

STORE_VERSION: Final = 3
"""Raised by hand whenever the stored form of the same cases changes."""

ARRAY_TYPES: Final[dict[str, str]] = {"imgs": "uint8", "gts_u8": "uint8", "gts_u16": "uint16"}
"""Arrays of a modality's group and their element types."""

GT_ARRAYS: Final[dict[str, str]] = {"uint8": "gts_u8", "uint16": "gts_u16", "": ""}
"""Element type of a case's labels -> array that holds them; a case without labels uses neither array."""


@dataclass(frozen=True)
class StoreConfig:
    """Sizes of chunks, shards and parts, and the compression."""

    chunk_bytes: int = 262_144
    """Uncompressed bytes of an inner chunk; the default is one 512 x 512 slice."""
    chunks_per_shard: int = 256
    """Inner chunks of a shard, which is one file."""
    part_shards: int = 8
    """Shards of `imgs` that a part may own; a single case that needs more gets a part of its own."""
    codec: Compression = "zstd"
    """Compression of inner chunks; `lz4` reads about twice as fast as `zstd` and takes about 1.3 times the space."""
    level: int = 1
    """Compression level. For lz4, levels above 1 are its high compression mode. On CT, zstd at level 1 gives as few
    bytes as level 3 at twice the speed; images that compress badly need level 4 to be as small as their npz files."""

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If one is out of range.
        """
        if self.chunk_bytes < 2 or self.chunk_bytes % 2:
            raise ValueError(f"chunk_bytes: expected an even number above 0, found {self.chunk_bytes}")
        for name in ("chunks_per_shard", "part_shards", "level"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")
        if self.codec == "lz4" and self.level > MAX_LZ4_LEVEL:
            raise ValueError(f"level: expected at most {MAX_LZ4_LEVEL} with lz4, found {self.level}")
        if self.codec not in COMPRESSIONS:
            raise ValueError(f"codec: expected one of {', '.join(COMPRESSIONS)}, found {self.codec!r}")

    def array_layouts(self) -> dict[str, ArrayLayout]:
        """Return the layout of each array of a modality's group."""
        return {name: self._array_layout(name, dtype) for name, dtype in ARRAY_TYPES.items()}

    def _array_layout(self, name: str, dtype: str) -> ArrayLayout:
        chunk = self.chunk_bytes // (2 if dtype == "uint16" else 1)
        return ArrayLayout(name, dtype, (), chunk, chunk * self.chunks_per_shard, self.level, self.codec)

    def encoding(self) -> dict[str, int | str]:
        """Return the settings that determine the bytes of a part."""
        cut: dict[str, int | str] = {"chunk_bytes": self.chunk_bytes, "chunks_per_shard": self.chunks_per_shard}
        return {**cut, "codec": self.codec, "level": self.level}
