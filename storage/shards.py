"""Sharded zarr v3 arrays whose shards are written whole, once, and read under a manifest.

What belongs here: encoding a shard, array metadata, checked reading; for any array that is cut along its first axis.
Not here: what the elements mean (`storage.slice_store`, `storage.teacher_cache`) nor which shards a part owns.

zarr itself encodes and decodes, so the files are standard by construction. What zarr does not do is added here: it
reads a missing shard as zeros without an error, so a read is refused unless the manifest names every shard it touches
and each file has the size recorded for it. Flipped bytes fail the crc32c of their inner chunk.
"""

import hashlib
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore, MemoryStore

from storage.atomic import write_bytes
from storage.errors import IntegrityError, StorageError

ARRAY_METADATA: Final = "zarr.json"


@dataclass(frozen=True)
class ArrayLayout:
    """How one array lies on disk.

    Attributes:
        name: Name of the array in its group.
        dtype: numpy name of the element type.
        tail: Shape after axis 0; never cut into chunks.
        chunk: Length of an inner chunk along axis 0, what one checksum and one decompression cover.
        shard: Length of a shard along axis 0, one file; a multiple of `chunk`.
        level: zstd level.
    """

    name: str
    dtype: str
    tail: tuple[int, ...]
    chunk: int
    shard: int
    level: int = 1

    def path(self, folder: Path, shard: int) -> Path:
        """Return the file of a shard of this array in the group at `folder`."""
        return folder.joinpath(self.name, "c", str(shard), *("0" for _ in self.tail))

    def metadata(self, length: int) -> bytes:
        """Return the content of the array's `zarr.json` for `length` along axis 0."""
        return _content(self._in_memory(length)[0], f"{self.name}/{ARRAY_METADATA}")

    def encode(self, block: npt.NDArray[Any]) -> bytes:
        """Return the bytes of a shard.

        Args:
            block: (shard, *tail) of `dtype`.

        Raises:
            StorageError: If the block has another shape or type.
        """
        expected = (self.shard, *self.tail)
        if block.shape != expected or block.dtype != np.dtype(self.dtype):
            raise StorageError(
                f"shard of {self.name}: expected {self.dtype} {expected}, found {block.dtype} {block.shape}; "
                "pass whole shards of the array's type"
            )
        files, array = self._in_memory(self.shard)
        array[:] = block
        return _content(files, "/".join([self.name, "c", "0", *("0" for _ in self.tail)]))

    def _in_memory(self, length: int) -> tuple[dict[str, Any], Any]:
        files: dict[str, Any] = {}
        array = zarr.create_array(
            MemoryStore(files),
            name=self.name,
            shape=(length, *self.tail),
            chunks=(self.chunk, *self.tail),
            shards=(self.shard, *self.tail),
            dtype=self.dtype,
            compressors=[ZstdCodec(level=self.level), Crc32cCodec()],
            fill_value=0,
            # A chunk of zeros is stored like any other, so that an absent one is always a fault.
            config={"write_empty_chunks": True},
        )
        return files, array


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
        n_bytes: Size of its file.
        sha256: Hex digest of its file.
    """

    array: str
    shard: int
    n_bytes: int
    sha256: str


def write_shard(folder: Path, layout: ArrayLayout, shard: int, block: npt.NDArray[Any]) -> ShardRecord:
    """Encode one shard and publish its file atomically.

    Args:
        folder: The group.
        layout: The array.
        shard: Number of the shard.
        block: (layout.shard, *layout.tail) of the array's type.
    """
    data = layout.encode(block)
    write_bytes(layout.path(folder, shard), data)
    return ShardRecord(layout.name, shard, len(data), hashlib.sha256(data).hexdigest())


def record_problem(folder: Path, layout: ArrayLayout, record: ShardRecord) -> str | None:
    """Return why the file of a recorded shard cannot be used, or None; looks at presence and size only."""
    path = layout.path(folder, record.shard)
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        return f"{path}: expected {record.n_bytes} bytes, found no file"
    return None if found == record.n_bytes else f"{path}: expected {record.n_bytes} bytes, found {found}"


class ShardWriter:
    """Fills the shards of one array that one part owns, in order, one shard in memory at a time.

    Only for flat arrays. Every appended run of elements starts on an inner chunk's boundary.

    Attributes:
        records: What has been published so far.
    """

    def __init__(self, folder: Path, layout: ArrayLayout, first: int, count: int) -> None:
        self.records: list[ShardRecord] = []
        self._folder, self._layout = folder, layout
        self._position, self._end = first * layout.shard, (first + count) * layout.shard
        self._block: npt.NDArray[Any] = np.zeros(layout.shard if count else 0, dtype=layout.dtype)

    def append(self, values: npt.NDArray[Any]) -> int:
        """Store a flat run of elements and return the element offset it starts at.

        Raises:
            StorageError: If the part's shards cannot hold it.
        """
        offset = self._position
        if offset + values.size > self._end:
            raise StorageError(
                f"{self._layout.name}: expected at most {self._end - offset} elements more in this part, found "
                f"{values.size}; plan the store again"
            )
        for start, stop in _pieces(offset, values.size, self._layout.shard):
            at = (offset + start) % self._layout.shard
            self._block[at : at + stop - start] = values[start:stop]
            self._move(offset + stop)
        self._move(round_up(offset + values.size, self._layout.chunk))
        return offset

    def close(self) -> list[ShardRecord]:
        """Publish the last shard, padded with zeros, and return the records of all."""
        self._move(round_up(self._position, self._layout.shard))
        return self.records

    def _move(self, position: int) -> None:
        shard = self._position // self._layout.shard
        if position // self._layout.shard > shard:
            self.records.append(write_shard(self._folder, self._layout, shard, self._block))
            self._block[:] = 0
        self._position = position


def round_up(value: int, unit: int) -> int:
    """Return the smallest multiple of `unit` that is not below `value`."""
    return -(-value // unit) * unit


def _pieces(offset: int, size: int, shard: int) -> list[tuple[int, int]]:
    """Cut `size` elements that start at `offset` where shards end; returns ranges within the run."""
    cuts = range(round_up(offset + 1, shard) - offset, size, shard)
    edges = [0, *cuts, size]
    return [(start, stop) for start, stop in itertools.pairwise(edges) if stop > start]


class ShardReader:
    """Reads the arrays of one published group through zarr, refusing whatever its manifest does not vouch for.

    Arrays are opened once per process; a pickled copy, and a forked child, open their own.
    """

    def __init__(
        self, folder: Path, layouts: Sequence[ArrayLayout], shards: Sequence[Mapping[str, Any]], remedy: str
    ) -> None:
        """Prepare reading; nothing is opened yet.

        Args:
            folder: The group.
            layouts: Its arrays, as the manifest describes them.
            shards: The manifest's entries: the fields of a `ShardRecord`, and `part_id`.
            remedy: What a user runs to have a damaged part written again; ends every error.
        """
        self._folder, self._remedy = folder, remedy
        self._layouts = {layout.name: layout for layout in layouts}
        self._records = {(shard["array"], shard["shard"]): record_from(shard) for shard in shards}
        self._parts = {(shard["array"], shard["shard"]): str(shard["part_id"]) for shard in shards}
        self._arrays: dict[str, Any] = {}
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": {}}

    def read(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Return elements `start:stop` along axis 0 of an array, (stop - start, *tail).

        Raises:
            IntegrityError: If a shard is not named by the manifest, is missing, or fails its checksum.
        """
        layout = self._layouts[name]
        touched = range(start // layout.shard, round_up(stop, layout.shard) // layout.shard)
        for shard in touched:
            if (name, shard) not in self._records:
                raise IntegrityError(
                    f"{self._folder / name}: the manifest names no shard {shard}, so nothing vouches for its content; "
                    "the caller's offsets are of another state of the store: read them again, or " + self._remedy
                )
        try:
            values = np.asarray(self._array(layout)[start:stop])
        except (ValueError, RuntimeError) as error:
            raise self._damaged(name, touched, f"elements {start} to {stop} fail their checksum ({error})") from error
        # Sizes are compared after the read: a file that vanished before or during it was read as zeros.
        for shard in touched:
            problem = record_problem(self._folder, layout, self._records[name, shard])
            if problem:
                raise self._damaged(name, [shard], problem)
        if len(values) != stop - start:
            raise self._damaged(name, touched, f"expected elements up to {stop}, found an array that ends before")
        return values

    def _damaged(self, name: str, shards: Iterable[int], problem: str) -> IntegrityError:
        parts = sorted({f"{self._parts[name, shard]}.json" for shard in shards})
        return IntegrityError(
            f"{self._folder / name}: {problem}; delete {', '.join(parts)} in {self._folder / 'parts'} and "
            f"{self._remedy}"
        )

    def _array(self, layout: ArrayLayout) -> Any:  # noqa: ANN401
        if self._process != os.getpid():
            self._arrays, self._process = {}, os.getpid()
        if layout.name not in self._arrays:
            self._arrays[layout.name] = self._open(layout)
        return self._arrays[layout.name]

    def _open(self, layout: ArrayLayout) -> Any:  # noqa: ANN401
        try:
            array = zarr.open_array(LocalStore(self._folder, read_only=True), path=layout.name, mode="r", zarr_format=3)
        except FileNotFoundError as error:
            raise IntegrityError(f"{self._folder / layout.name}: no zarr array; {self._remedy}") from error
        expected = (np.dtype(layout.dtype), (layout.shard, *layout.tail), (layout.chunk, *layout.tail))
        found = (array.dtype, array.shards, array.chunks)
        if found != expected:
            raise IntegrityError(
                f"{self._folder / layout.name}: expected type, shard and chunk {expected} as in the manifest, found "
                f"{found}; {self._remedy}"
            )
        return array


def record_from(value: Mapping[str, Any]) -> ShardRecord:
    """Return the record that a manifest's or fragment's entry describes; further keys are ignored."""
    return ShardRecord(value["array"], value["shard"], value["n_bytes"], value["sha256"])
