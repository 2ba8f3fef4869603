"""Resampling with torch, for training and for prediction with torch.

What belongs here: `resampling.Resampler` on torch, on the CPU. Not here: what is resampled and why (`preprocessing`).

Legend: see `resampling`.
"""

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from medsam_core.imaging.resampling import Floats


class TorchResampler:
    """Resamples with torch on the CPU."""

    def resize_image(self, image: npt.NDArray[np.uint8], height: int, width: int) -> Floats:
        """Resize an image bilinearly with antialias; see `resampling.Resampler`."""
        planes = torch.from_numpy(image.astype(np.float32)).reshape(*image.shape[:2], -1).permute(2, 0, 1)
        if width == 1:
            # With antialias torch resizes a column of one pixel wrongly (all rows equal the first), but a row rightly.
            return _resize(planes.transpose(1, 2), width, height, antialias=True).swapaxes(1, 2)
        return _resize(planes, height, width, antialias=True)

    def resize_logits(self, logits: Floats, height: int, width: int) -> Floats:
        """Resize logits bilinearly without antialias; see `resampling.Resampler`."""
        return _resize(as_tensor(logits), height, width, antialias=False)

    def cover(self, masks: npt.NDArray[np.bool_], rows: Floats, columns: Floats) -> Floats:
        """Return the share of each cell that the masks cover; see `resampling.Resampler`."""
        covered: Floats = (as_tensor(rows) @ torch.from_numpy(masks.astype(np.float32)) @ as_tensor(columns).T).numpy()
        return covered


def as_tensor(array: Floats) -> Tensor:
    """Return a tensor that shares the array's memory, or a copy's where the array is read-only."""
    return torch.from_numpy(np.require(array, requirements="W"))


def _resize(planes: Tensor, height: int, width: int, *, antialias: bool) -> Floats:
    """Resize (C, H, W) planes bilinearly, in continuous coordinates (`align_corners=False`)."""
    resized: Tensor = F.interpolate(
        planes[None], size=(height, width), mode="bilinear", align_corners=False, antialias=antialias
    )
    result: Floats = resized[0].numpy()
    return result
