"""The data as medsam_core sees it: a table of slices and a reader of their pixels.

What belongs here: the dataclasses and Protocols by which medsam_core reads slices without importing storage. Not here:
how slices are stored, or what is done with them.

Legend: N slices, L labels over all slices, H W pixels of a slice at native resolution.
Boxes are `xyxy_px`: x_min, y_min, x_max, y_max, half-open, in pixels of the named frame.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

LabelMap = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
"""Label ids of a slice, (H, W)."""


@dataclass(frozen=True)
class SliceTable:
    """The slices of one split of a release, in release order, as flat arrays.

    Attributes:
        modalities: Canonical modality names; `modality` holds indices into it.
        modality: (N,) int8.
        height: (N,) int32, native pixels.
        width: (N,) int32, native pixels.
        label_start: (N + 1,) int64; labels of slice i lie at `label_start[i]:label_start[i + 1]`.
        label_id: (L,) int32, original ids, ascending within a slice.
        label_area: (L,) int64, foreground pixels.
        label_box: (L, 4) int32, tight `xyxy_px` of each label in the native slice, half-open.
        unlabelled: (N,) bool, slices without a label map; None: there are none.
    """

    modalities: tuple[str, ...]
    modality: npt.NDArray[np.int8]
    height: npt.NDArray[np.int32]
    width: npt.NDArray[np.int32]
    label_start: npt.NDArray[np.int64]
    label_id: npt.NDArray[np.int32]
    label_area: npt.NDArray[np.int64]
    label_box: npt.NDArray[np.int32]
    unlabelled: npt.NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        """Return N."""
        return len(self.modality)

    def drawable(self) -> npt.NDArray[np.int64]:
        """Return the rows that hold at least one label, or have no label map; blank ones are stored but never drawn."""
        labelled = np.diff(self.label_start) > 0
        return np.flatnonzero(labelled if self.unlabelled is None else labelled | self.unlabelled)


class SliceReader(Protocol):
    """Reads slices by their row in a `SliceTable`."""

    def read(self, row: int) -> tuple[npt.NDArray[np.uint8], LabelMap | None]:
        """Return the image, (H, W) or (H, W, 3) uint8, and the label map, (H, W) unsigned, or None without one."""
        ...
