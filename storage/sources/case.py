"""One case: its normalised arrays and their description.

What belongs here: the case, independent of the format of its source. Not here: reading (`storage.sources.source`),
storing slices (`storage.slices`).
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

MAX_LABEL: Final = 65535

LabelArray = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


@dataclass(frozen=True, eq=False)
class Case:
    """A case as read: one image, or one volume of slices along axis 0."""

    imgs: npt.NDArray[np.uint8]
    """(H, W) or (H, W, 3); (D, H, W) if `is_3d`."""
    is_3d: bool
    gts: LabelArray | None
    """Label ids, (H, W) or (D, H, W), uint8 if all ids fit, else uint16; None if the source has none, or they were not
    requested."""
    boxes: npt.NDArray[np.int64] | None
    """(N, 4) x, y minima then maxima, or (N, 6) x, y, z minima then maxima; native pixels, maxima inclusive. None if
    the source has none, or if they are invalid and were not requested."""
    spacing_zyx: tuple[float, float, float] | None
    """Voxel size in mm along the axes of the array; None for images, and if the source states none."""
    content_hash: str
    """BLAKE3 of the normalised arrays, independent of compression, member order and integer width. Empty if the case
    was read only for its boxes, since its labels are then missing."""

    @property
    def depth(self) -> int:
        """Slices; 1 for an image."""
        return int(self.imgs.shape[0]) if self.is_3d else 1

    @property
    def height(self) -> int:
        """Rows of a slice."""
        return int(self.imgs.shape[1 if self.is_3d else 0])

    @property
    def width(self) -> int:
        """Columns of a slice."""
        return int(self.imgs.shape[2 if self.is_3d else 1])

    @property
    def channels(self) -> int:
        """3 for a colour image, else 1."""
        return 3 if self.imgs.ndim == 3 and not self.is_3d else 1

    def slice_image(self, z: int) -> npt.NDArray[np.uint8]:
        """Return the image of slice `z`, (H, W) or (H, W, 3), as a view."""
        self._check_slice(z)
        return self.imgs[z] if self.is_3d else self.imgs

    def slice_mask(self, z: int) -> LabelArray | None:
        """Return the label ids of slice `z`, (H, W), as a view; None if the case has no `gts`."""
        self._check_slice(z)
        return self.gts[z] if self.is_3d and self.gts is not None else self.gts

    def label_ids(self) -> npt.NDArray[np.int64]:
        """Return the distinct label ids above 0, ascending; empty without `gts`."""
        present = np.zeros(MAX_LABEL + 1, dtype=np.bool_)
        for z in range(self.depth):
            mask = self.slice_mask(z)
            if mask is not None:
                present[mask] = True
        present[0] = False
        return np.flatnonzero(present).astype(np.int64)

    def _check_slice(self, z: int) -> None:
        if not 0 <= z < self.depth:
            raise IndexError(f"slice: expected 0 to {self.depth - 1}, found {z}")
