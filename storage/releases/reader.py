"""Slices of a release by their row. What belongs here: reading the pixels of a row. Not here: choosing rows.

A release records the place of its slices. When a part of the store is replaced, the same content lies at another place.
Therefore rows whose part is no longer published are looked up again by case, content and z.
"""

from collections.abc import Sequence
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import pandas as pd

from storage.base.blobs import Blobs
from storage.base.errors import IntegrityError
from storage.base.modalities import MODALITIES
from storage.releases.columns import GT_ARRAY_NAMES, SliceColumns
from storage.slices.index import published_rows
from storage.slices.label_statistics import LabelMap
from storage.slices.manifest import load_manifest
from storage.slices.reader import SliceStore

_KEY: Final = ["case_id", "content_hash", "z"]
_PLACE: Final = ["img_offset", "gt_array", "gt_offset"]
_Moved = tuple[npt.NDArray[np.int64], pd.DataFrame]


class ReleaseReader:
    """Reads the slices of a table, row by row; satisfies `medsam_core.base.data.SliceReader` by its shape.

    Each process opens columns and stores at its first read. May be pickled; copies share the file of columns.
    """

    def __init__(self, root: Blobs, columns: SliceColumns) -> None:
        """Prepare reading.

        Args:
            root: Place of all stores.
            columns: The columns of the slices.

        Raises:
            StorageError: If a store is not published.
            IntegrityError: If the published stores no longer hold a row's content.
        """
        self.columns = columns
        self._store = SliceStore(root)
        self._moved = _moved_places(root, columns)
        self._arrays: _Arrays | None = None

    def __getstate__(self) -> dict[str, Any]:
        # The columns are pickled by path; the arrays are views of them and are made again.
        return {**self.__dict__, "_arrays": None}

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def table(self) -> pd.DataFrame:
        """All rows as a table, made anew at each call; for splits of modest size."""
        return self.columns.frame()

    def read(self, row: int) -> tuple[npt.NDArray[np.uint8], LabelMap | None]:
        """Return the image of a row, (H, W) or (H, W, 3) uint8, and its label ids, (H, W) unsigned, or None.

        Raises:
            IndexError: If the row does not exist.
            IntegrityError: If bytes are missing or fail their checksum.
        """
        at = self._arrays or self._views()
        if not 0 <= row < at.count:
            raise self._no_row(row)
        height, width, channels = at.height.item(row), at.width.item(row), at.channels.item(row)
        shape = (height, width) if channels == 1 else (height, width, channels)
        modality, gt_array = MODALITIES[at.modality.item(row)], GT_ARRAY_NAMES[at.gt_array.item(row)]
        return self._store.read(modality, at.img_offset.item(row), shape, gt_array, at.gt_offset.item(row))

    def _views(self) -> "_Arrays":
        if self._arrays is None:
            self._arrays = _Arrays(self.columns, self._moved)
        return self._arrays

    def read_batch(self, rows: Sequence[int]) -> list[tuple[npt.NDArray[np.uint8], LabelMap | None]]:
        """Return what `read` gives for each row, in the order of `rows`, read in the order in which they are stored.

        Raises:
            IndexError: If there is no such row.
            IntegrityError: If bytes are missing or fail their checksum.
        """
        at = self._views()
        for row in rows:
            if not 0 <= row < at.count:
                raise self._no_row(row)
        order = np.lexsort((at.img_offset[list(rows)], at.modality[list(rows)])).tolist()
        slices = {i: self.read(rows[i]) for i in order}
        return [slices[i] for i in range(len(rows))]

    def _no_row(self, row: int) -> IndexError:
        return IndexError(f"row: expected 0 to {len(self) - 1}, found {row}")

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


class _Arrays:
    """The columns that reading needs, as views; only columns with places that have moved are copies."""

    def __init__(self, columns: SliceColumns, moved: _Moved | None) -> None:
        self.count = len(columns)
        self.modality: npt.NDArray[np.int8] = columns.codes("modality")
        self.height: npt.NDArray[np.int32] = columns.numbers("height")
        self.width: npt.NDArray[np.int32] = columns.numbers("width")
        self.channels: npt.NDArray[np.int32] = columns.numbers("channels")
        self.gt_array: npt.NDArray[np.int8] = columns.codes("gt_array")
        self.img_offset: npt.NDArray[np.int64] = columns.numbers("img_offset")
        self.gt_offset: npt.NDArray[np.int64] = columns.numbers("gt_offset")
        if moved is not None:
            rows, places = moved
            self.gt_array = self.gt_array.copy()
            self.img_offset = self.img_offset.copy()
            self.gt_offset = self.gt_offset.copy()
            self.img_offset[rows] = places["img_offset"].to_numpy(np.int64)
            self.gt_offset[rows] = places["gt_offset"].to_numpy(np.int64)
            self.gt_array[rows] = places["gt_array"].map(GT_ARRAY_NAMES.index).to_numpy(np.int8)


def _moved_places(root: Blobs, columns: SliceColumns) -> _Moved | None:
    """Return the rows whose part is no longer published, and their present `_PLACE`; None if there are no such rows."""
    modalities = columns.codes("modality")
    present = [MODALITIES[code] for code in np.unique(modalities)]
    published = {part.part_id for name in present for part in load_manifest(root, name).fragments}
    gone = np.array([name not in published for name in columns.names("part_id")], bool)
    if not gone.any():
        return None
    rows = np.flatnonzero(gone[columns.codes("part_id")])
    keys = columns.frame(["modality", *_KEY], rows)
    places = [_found_again(root, str(name), own[_KEY]) for name, own in keys.groupby("modality", observed=True)]
    return rows, pd.concat(places).loc[keys.index]


def _found_again(root: Blobs, modality: str, keys: pd.DataFrame) -> pd.DataFrame:
    rows = published_rows(root, modality, [*_KEY, *_PLACE])
    found = keys.merge(rows, on=_KEY, how="left")
    lost = found.loc[found["img_offset"].isna(), "case_id"].unique().tolist()
    if lost:
        raise IntegrityError(
            f"slice store {modality}: expected the release's content of every case, found {len(lost)} cases changed or "
            f"removed, such as {lost[:5]}; restore their files and make the slice store of {modality} again, or move "
            "to a newer release"
        )
    return found[_PLACE].set_index(keys.index)
