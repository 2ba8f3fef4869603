"""Slices of a release by their row. What belongs here: rows to pixels. Not here: which rows there are.

A release outlives the place its slices were stored at: when a part of the store is planned anew, the same content lies
elsewhere. Rows whose part is no longer published are therefore looked up again by case, content and z.
"""

from collections.abc import Sequence
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import pandas as pd

from storage.blobs import Blobs
from storage.errors import IntegrityError, StorageError
from storage.label_statistics import LabelMap
from storage.layout import load_manifest
from storage.slice_index import published_rows
from storage.slice_store import SliceStore

_KEY: Final = ["case_id", "content_hash", "z"]
_PLACE: Final = ["img_offset", "gt_array", "gt_offset"]
_GT_ARRAYS: Final = ("", "gts_u8", "gts_u16")


class ReleaseReader:
    """Reads the slices of a table, row by row; satisfies `medsam_core.data.SliceReader` by its shape.

    Holds flat numpy columns, opens stores when first read from in each process, and may be pickled; a pickled copy
    leaves the table behind.
    """

    def __init__(self, root: Blobs, table: pd.DataFrame) -> None:
        """Prepare reading.

        Args:
            root: Place of all stores.
            table: Rows with the columns of the slice index; row i is the i-th, whatever the table's own row labels.

        Raises:
            StorageError: If a store is not published.
            IntegrityError: If the published stores no longer hold a row's content.
        """
        self._table: pd.DataFrame | None = table
        self._store = SliceStore(root)
        names, codes = np.unique(table["modality"].astype(str).to_numpy(object), return_inverse=True)
        self._names = tuple(str(name) for name in names)
        self._modality = codes.astype(np.int8)
        self._shape = table[["height", "width", "channels"]].to_numpy(np.int32)
        places = _places(root, table, self._names)
        self._img_offset = places["img_offset"].to_numpy(np.int64)
        self._gt_offset = places["gt_offset"].to_numpy(np.int64)
        self._gt_array = places["gt_array"].astype(str).map(_GT_ARRAYS.index).to_numpy(np.int8)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None}

    def __len__(self) -> int:
        return len(self._modality)

    @property
    def table(self) -> pd.DataFrame:
        """The rows as given.

        Raises:
            StorageError: In a pickled copy, which leaves them behind.
        """
        if self._table is None:
            raise StorageError("release reader: expected the table, found a pickled copy without it; pass it along")
        return self._table

    def read(self, row: int) -> tuple[npt.NDArray[np.uint8], LabelMap | None]:
        """Return the image of a row, (H, W) or (H, W, 3) uint8, and its label ids, (H, W) unsigned, or None.

        Raises:
            IndexError: If there is no such row.
            IntegrityError: If bytes are missing or fail their checksum.
        """
        self._require(row)
        height, width, channels = self._shape[row].tolist()
        shape = (height, width) if channels == 1 else (height, width, channels)
        gt_array = _GT_ARRAYS[self._gt_array[row]]
        modality = self._names[self._modality[row]]
        return self._store.read(modality, int(self._img_offset[row]), shape, gt_array, int(self._gt_offset[row]))

    def read_batch(self, rows: Sequence[int]) -> list[tuple[npt.NDArray[np.uint8], LabelMap | None]]:
        """Return what `read` gives for each row, in the order of `rows`, read in the order in which they are stored.

        Raises:
            IndexError: If there is no such row.
            IntegrityError: If bytes are missing or fail their checksum.
        """
        for row in rows:
            self._require(row)
        order = np.lexsort((self._img_offset[list(rows)], self._modality[list(rows)])).tolist()
        slices = {i: self.read(rows[i]) for i in order}
        return [slices[i] for i in range(len(rows))]

    def _require(self, row: int) -> None:
        if not 0 <= row < len(self):
            raise IndexError(f"row: expected 0 to {len(self) - 1}, found {row}")

    def read_case(self, rows: Sequence[int]) -> tuple[npt.NDArray[np.uint8], LabelMap | None]:
        """Return the slices of a volume stacked along a new axis 0, in the order of `rows`.

        Args:
            rows: Rows of one case, at least one.

        Returns:
            Images (D, H, W) or (D, H, W, 3) uint8 and label ids (D, H, W) unsigned, or None without labels.

        Raises:
            IntegrityError: If bytes are missing or fail their checksum.
        """
        slices = [self.read(row) for row in rows]
        masks = [mask for _, mask in slices if mask is not None]
        labels = np.stack(cast("list[npt.NDArray[np.uint16]]", masks)) if masks else None
        return np.stack([image for image, _ in slices]), labels


def _places(root: Blobs, table: pd.DataFrame, modalities: Sequence[str]) -> pd.DataFrame:
    """Return where each row lies now: `_PLACE`, in the order of the table."""
    published = {part["part_id"] for name in modalities for part in load_manifest(root, name)["parts"]}
    places = table[["modality", *_KEY, *_PLACE]].reset_index(drop=True)
    moved = ~table["part_id"].isin(published).to_numpy()
    for name in modalities:
        stale = np.flatnonzero(moved & (places["modality"] == name).to_numpy())
        if stale.size:
            places.loc[stale, _PLACE] = _found_again(root, name, places.loc[stale, _KEY])
    return places[_PLACE]


def _found_again(root: Blobs, modality: str, keys: pd.DataFrame) -> npt.NDArray[Any]:
    rows = published_rows(root, modality, [*_KEY, *_PLACE])
    found = keys.merge(rows, on=_KEY, how="left")
    lost = found.loc[found["img_offset"].isna(), "case_id"].unique().tolist()
    if lost:
        raise IntegrityError(
            f"slice store {modality}: expected the release's content of every case, found {len(lost)} cases changed or "
            f"removed, such as {lost[:5]}; restore their files and materialise slice_store/{modality} again, or move "
            "to a newer release"
        )
    return found[_PLACE].to_numpy(object)
