"""The slices of one split as flat columns that processes share.

What belongs here: the types of the columns and their file. Not here: choosing the slices (`storage.releases.release`),
pixels.

The file is an uncompressed Arrow IPC file with one record batch. It is mapped into memory: opening it reads no rows,
all processes share the same pages of the page cache, and no row becomes a Python object.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from storage.base.atomic import atomic_file
from storage.base.modalities import MODALITIES
from storage.slices.index import PART_SCHEMA

GT_ARRAY_NAMES: Final = ("", "gts_u8", "gts_u16")
"""The names that the codes of `gt_array` index."""

_FIXED: Final = {"modality": MODALITIES, "gt_array": GT_ARRAY_NAMES}
"""Columns of names with a fixed list of names for their codes."""

_NAMED: Final = ("case_id", "content_hash", "dataset", "group", "part_id")
"""Columns of names whose codes number the names in the order of their first appearance."""


def _encoded(name: str, column: pd.Series) -> pa.Array:
    if name in _FIXED:
        order = {text: code for code, text in enumerate(_FIXED[name])}
        codes = np.array([order[text] for text in column.astype("str")], np.int8)
        return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(list(_FIXED[name]), pa.string()))
    if name in _NAMED:
        texts = pa.array(column.astype("str").to_numpy(object), pa.string())
        return texts.dictionary_encode()
    kind = PART_SCHEMA.field(name).type
    if pa.types.is_list(kind):
        return pa.array(column.to_numpy(dtype=object), pa.large_list(kind.value_type))
    return pa.array(column.to_numpy(), kind)


class SliceColumns:
    """The columns of a table of slices; may be pickled, by path if the columns are in a file.

    Every array is flat, read-only and, for a file, a view of the mapped pages.
    """

    def __init__(self, table: pa.Table | None, path: Path | None) -> None:
        self._loaded = table
        self._path = path

    @classmethod
    def of(cls, table: pd.DataFrame) -> "SliceColumns":
        """Return the columns of a table in memory, in row order: all columns of `storage.slices.index` in the table."""
        known = [name for name in table if name in _NAMED or name in PART_SCHEMA.names]
        return cls(pa.table({str(name): _encoded(str(name), table[name]) for name in known}), None)

    @classmethod
    def open(cls, path: Path) -> "SliceColumns":
        """Map a file that `save` wrote.

        Raises:
            OSError: If the file is missing or is no Arrow file.
        """
        columns = cls(None, path)
        columns._table()
        return columns

    def save(self, path: Path) -> None:
        """Write the columns to a file, atomically; equal columns give equal bytes."""
        table = self._table()
        with atomic_file(path) as file, pa.ipc.new_file(file, table.schema) as writer:
            # One batch, so that every column is contiguous in memory.
            for batch in table.combine_chunks().to_batches():
                writer.write_batch(batch)

    def _table(self) -> pa.Table:
        if self._loaded is None:
            with pa.memory_map(str(self._path)) as source, pa.ipc.open_file(source) as reader:
                self._loaded = reader.read_all()
        return self._loaded

    def __getstate__(self) -> dict[str, Any]:
        return {"_loaded": None if self._path else self._loaded, "_path": self._path}

    def __len__(self) -> int:
        return int(self._table().num_rows)

    def _column(self, name: str) -> pa.Array:
        column = self._table().column(name)
        return column.chunk(0) if column.num_chunks else pa.array([], column.type)

    def numbers(self, name: str) -> npt.NDArray[Any]:
        """Return a column of numbers, (N,)."""
        return cast("npt.NDArray[Any]", self._column(name).to_numpy(zero_copy_only=True))

    def codes(self, name: str) -> npt.NDArray[Any]:
        """Return a column of names as indices into `names(name)`, (N,); those of `modality` index `MODALITIES`."""
        return cast("npt.NDArray[Any]", self._column(name).indices.to_numpy(zero_copy_only=True))

    def names(self, name: str) -> npt.NDArray[np.object_]:
        """Return the distinct names of a column of names, in the order of their codes."""
        return np.array(self._column(name).dictionary.to_pylist(), dtype=object)

    def lists(self, name: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
        """Return a column of lists as offsets (N + 1,) and values: list i is `values[offsets[i]:offsets[i + 1]]`."""
        column = self._column(name)
        if not len(column):
            return np.zeros(1, np.int64), np.empty(0, column.type.value_type.to_pandas_dtype())
        return column.offsets.to_numpy(zero_copy_only=True), column.values.to_numpy(zero_copy_only=True)

    def frame(
        self, names: Sequence[str] | None = None, rows: npt.NDArray[np.integer[Any]] | None = None
    ) -> pd.DataFrame:
        """Return some columns and rows as a table, with names as strings; for few rows: each cell becomes an object."""
        table = self._table() if names is None else self._table().select(list(names))
        chosen = table if rows is None else table.take(pa.array(rows))
        frame: pd.DataFrame = chosen.to_pandas(strings_to_categorical=False)
        return frame.astype({name: "str" for name in frame if frame[name].dtype == "category"})
