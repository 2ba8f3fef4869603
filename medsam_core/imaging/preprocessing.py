"""The one preprocessing of training, teacher, validation, inference and export.

What belongs here: converting images, masks and logits between a slice's native frame and the square model frame, in
numpy, with any resampler. Not here: views and boxes (`views`), resampling itself (`resampling`), the standardisation or
min-max that student and teacher apply to the same pixels, or random draws. Nothing here imports torch.

Legend: H W native pixels, S side of the model frame in pixels, K boxes, G side of the logits, which is the loss grid.
The model's `Geometry` says how large a slice is in the square; it lies in the upper left corner, zeros fill the rest.
Coordinates are continuous: pixel i covers [i, i + 1), so boxes are half-open and scale without rounding.
All steps are float32; nothing is rounded to uint8 in between.
"""

import numpy as np
import numpy.typing as npt

from medsam_core.base.geometry import AREA, Geometry
from medsam_core.imaging.resampling import Floats, Resampler, area_resized, area_weights
from medsam_core.imaging.views import View, orient

_TIE = 1e-6
"""Tolerance by which a cell covered by one half counts as inside in spite of rounding."""


def image_to_model(image: npt.NDArray[np.uint8], view: View, geometry: Geometry, resampler: Resampler) -> Floats:
    """Bring a slice's image into the model frame.

    Args:
        image: (H, W) or (H, W, 3) uint8; grey is repeated over the three channels.
        view: What to show of it.
        geometry: Of the model.
        resampler: Resizes the image where it is done bilinearly.

    Returns:
        (3, S, S) float32, raw grey values in 0..255, not rounded: bilinear with antialias (`docs/adr/0003`), or means
        over areas (`docs/adr/0028`), as the geometry says. The three channels of a grey image share their memory and
        are read-only.
    """
    shown, side = image[view.window], geometry.image_side
    resize = area_resized if geometry.resampling == AREA else resampler.resize_image
    resized = resize(shown, *geometry.content(*shown.shape[:2]))
    planes = orient(_padded(resized, side), view)
    return planes if len(planes) == 3 else np.broadcast_to(planes, (3, side, side))


def masks_to_grid(
    masks: npt.NDArray[np.bool_], view: View, geometry: Geometry, resampler: Resampler
) -> tuple[Floats, int]:
    """Bring masks to the grid on which the losses compare them with low-resolution logits.

    A cell is inside where the mask covers at least half of it. An object in view that covers half of no cell would be
    lost; it takes every cell that it touches instead, and is counted.

    Args:
        masks: (K, H, W) bool, native.
        view: What the model frame shows.
        geometry: Of the model.
        resampler: Averages the masks over cells.

    Returns:
        (K, G, G) float32 of 0 and 1, and the number of objects that were kept by max-pooling.
    """
    shown = masks[:, *view.window]
    height, width = shown.shape[1:]
    content_height, content_width = geometry.content(height, width)
    side, grid = geometry.image_side, geometry.logit_side
    rows = area_weights(height, grid, content_height / side)
    columns = area_weights(width, grid, content_width / side)
    cells = resampler.cover(shown, rows, columns) >= 0.5 - _TIE
    lost = np.flatnonzero(shown.any(axis=(1, 2)) & ~cells.any(axis=(1, 2)))
    # A share within the rounding error of zero does not count as touching.
    touched_rows, touched_columns = ((weights > _TIE).astype(np.float32) for weights in (rows, columns))
    cells[lost] = touched_rows @ (shown[lost].astype(np.float32) @ touched_columns.T) > 0
    return orient(cells.astype(np.float32), view), len(lost)


def logits_to_native(logits: Floats, height: int, width: int, geometry: Geometry, resampler: Resampler) -> Floats:
    """Resize low-resolution logits of a whole upright slice to its native size, bilinearly.

    Where the slice does not fill the square, logits are first resized to model pixels, in which the slice has whole
    numbers of rows and columns, and the padding is cut off; SAM does the same.

    Args:
        logits: (K, G, G) float32.
        height: H.
        width: W.
        geometry: Of the model.
        resampler: Resizes the logits.

    Returns:
        (K, H, W) float32.
    """
    side = geometry.image_side
    content_height, content_width = geometry.content(height, width)
    if (content_height, content_width) != (side, side):
        logits = resampler.resize_logits(logits, side, side)[:, :content_height, :content_width]
    return resampler.resize_logits(logits, height, width)


def _padded(planes: Floats, side: int) -> Floats:
    """Put planes, (C, h, w), into the upper left corner of a square of zeros; one that fills it is left as it is."""
    if planes.shape[1:] == (side, side):
        return planes
    square = np.zeros((len(planes), side, side), dtype=np.float32)
    square[:, : planes.shape[1], : planes.shape[2]] = planes
    return square
