"""The one preprocessing of training, teacher, validation, inference and export.

What belongs here: the way between a slice's native frame and the square model frame, for images, boxes, masks and
logits. Not here: the standardisation or min-max that student and teacher apply to the same pixels, or random draws.

Legend: H W native pixels, S side of the model frame in pixels, K boxes, G side of the logits, which is the loss grid.
How a slice lies in the square is its model's `Geometry` to say: it fills the upper left corner, zeros fill the rest.
Coordinates are continuous: pixel i covers [i, i + 1), so boxes are half-open and scale without rounding.
Everything is float32 from the first step; nothing is rounded to uint8 in between.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from medsam_core.geometry import Geometry

_TIE = 1e-6
"""A cell covered by exactly one half counts as inside, whatever the last bits of its coverage."""


@dataclass(frozen=True)
class View:
    """What part of a slice the model frame shows, and which way up.

    The crop is brought into the square first, then the square is flipped, then turned, padding included.

    Attributes:
        crop: `xyxy_px` of the native slice, half-open.
        flip_x: Mirror left and right.
        flip_y: Mirror top and bottom.
        quarter_turns: Turns by 90 degrees, counter-clockwise as displayed, 0 to 3.
    """

    crop: tuple[int, int, int, int]
    flip_x: bool = False
    flip_y: bool = False
    quarter_turns: int = 0

    @classmethod
    def whole(cls, height: int, width: int) -> "View":
        """Return the view of a whole slice, upright: that of validation, inference and export."""
        return cls((0, 0, width, height))


def image_to_model(image: npt.NDArray[np.uint8], view: View, geometry: Geometry) -> Tensor:
    """Bring a slice's image into the model frame.

    Args:
        image: (H, W) or (H, W, 3) uint8; grey is repeated over the three channels.
        view: What to show of it.
        geometry: Of the model.

    Returns:
        (3, S, S) float32, raw grey values in 0..255, not rounded: bilinear with antialias (`docs/adr/0003`).
    """
    x_min, y_min, x_max, y_max = view.crop
    shown = image[y_min:y_max, x_min:x_max].astype(np.float32)
    planes = torch.from_numpy(shown).reshape(*shown.shape[:2], -1).permute(2, 0, 1)
    height, width = geometry.content(*shown.shape[:2])
    resized = _resize(planes, height, width, antialias=True)
    square = F.pad(resized, (0, geometry.image_side - width, 0, geometry.image_side - height))
    return orient(square, view).expand(3, -1, -1)


def masks_to_grid(masks: npt.NDArray[np.bool_], view: View, geometry: Geometry) -> tuple[Tensor, int]:
    """Bring masks to the grid on which the losses compare them with low-resolution logits.

    A cell is inside where the mask covers at least half of it. An object in view that covers half of no cell would be
    lost; it takes every cell that it touches instead, and is counted.

    Args:
        masks: (K, H, W) bool, native.
        view: What the model frame shows.
        geometry: Of the model.

    Returns:
        (K, G, G) float32 of 0 and 1, and the number of objects that were kept by max-pooling.
    """
    x_min, y_min, x_max, y_max = view.crop
    shown = torch.from_numpy(masks[:, y_min:y_max, x_min:x_max].astype(np.float32))
    height, width = geometry.content(y_max - y_min, x_max - x_min)
    rows = _area_weights(y_max - y_min, height, geometry)
    columns = _area_weights(x_max - x_min, width, geometry)
    cells = (rows @ shown @ columns.T >= 0.5 - _TIE).to(torch.float32)
    lost = (shown.amax(dim=(1, 2)) > cells.amax(dim=(1, 2))).nonzero().flatten()
    # What covers less of a cell than rounding can tell from nothing does not touch it.
    touched_rows, touched_columns = (rows > _TIE).to(torch.float32), (columns > _TIE).to(torch.float32)
    cells[lost] = (touched_rows @ shown[lost] @ touched_columns.T > 0).to(torch.float32)
    return orient(cells, view), len(lost)


def boxes_to_model(boxes: npt.NDArray[Any], view: View, geometry: Geometry) -> npt.NDArray[np.float32]:
    """Scale boxes from the native frame to the model frame, without rounding.

    Args:
        boxes: (K, 4) `xyxy_px` of the native slice, half-open.
        view: What the model frame shows; a box that reaches beyond its crop reaches beyond the model frame.
        geometry: Of the model.

    Returns:
        (K, 4) float32 `xyxy_px` of the model frame, half-open.
    """
    offset, scale = _offset_and_scale(view, geometry)
    side = geometry.image_side
    x_min, y_min, x_max, y_max = ((boxes - offset) * scale).T
    if view.flip_x:
        x_min, x_max = side - x_max, side - x_min
    if view.flip_y:
        y_min, y_max = side - y_max, side - y_min
    for _ in range(view.quarter_turns):
        x_min, y_min, x_max, y_max = y_min, side - x_max, y_max, side - x_min
    return np.stack([x_min, y_min, x_max, y_max], axis=-1).astype(np.float32)


def boxes_to_native(boxes: npt.NDArray[Any], view: View, geometry: Geometry) -> npt.NDArray[np.float32]:
    """Scale boxes from the model frame back to the native frame, without rounding: inverse of `boxes_to_model`.

    Args:
        boxes: (K, 4) `xyxy_px` of the model frame, half-open.
        view: What the model frame shows.
        geometry: Of the model.

    Returns:
        (K, 4) float32 `xyxy_px` of the native slice, half-open.
    """
    offset, scale = _offset_and_scale(view, geometry)
    side = geometry.image_side
    x_min, y_min, x_max, y_max = boxes.astype(np.float64).T
    for _ in range(view.quarter_turns):
        x_min, y_min, x_max, y_max = side - y_max, x_min, side - y_min, x_max
    if view.flip_y:
        y_min, y_max = side - y_max, side - y_min
    if view.flip_x:
        x_min, x_max = side - x_max, side - x_min
    return (np.stack([x_min, y_min, x_max, y_max], axis=-1) / scale + offset).astype(np.float32)


def logits_to_native(logits: Tensor, height: int, width: int, geometry: Geometry) -> Tensor:
    """Resize low-resolution logits of a whole upright slice to its native size, bilinearly.

    Where the slice does not fill the square, logits are brought to model pixels first, for only there does the slice
    end at a whole number of them; SAM does the same.

    Args:
        logits: (K, G, G) float.
        height: H.
        width: W.
        geometry: Of the model.

    Returns:
        (K, H, W) float32.
    """
    logits, side = logits.to(torch.float32), geometry.image_side
    content_height, content_width = geometry.content(height, width)
    if (content_height, content_width) != (side, side):
        logits = _resize(logits, side, side, antialias=False)[:, :content_height, :content_width]
    return _resize(logits, height, width, antialias=False)


def masks_from_logits(logits: Tensor, height: int, width: int, geometry: Geometry) -> npt.NDArray[np.bool_]:
    """Turn low-resolution logits of a whole upright slice into masks at its native size.

    The paper resizes the logits, then thresholds their sigmoid at 0.5, which is the sign of the logit.

    Args:
        logits: (K, G, G) float, on any device.
        height: H.
        width: W.
        geometry: Of the model.

    Returns:
        (K, H, W) bool.
    """
    masks = np.empty((len(logits), height, width), dtype=np.bool_)
    # One at a time: float logits of many boxes of a 3000 x 4000 slice would take gigabytes.
    for index, one in enumerate(logits):
        masks[index] = (logits_to_native(one[None], height, width, geometry)[0] > 0).cpu().numpy()
    return masks


def orient(square: Tensor, view: View) -> Tensor:
    """Flip and turn the last two axes of a square tensor, (..., n, n), as the view says."""
    if view.flip_x:
        square = square.flip(-1)
    if view.flip_y:
        square = square.flip(-2)
    return torch.rot90(square, view.quarter_turns, dims=(-2, -1)) if view.quarter_turns else square


def _resize(planes: Tensor, height: int, width: int, *, antialias: bool) -> Tensor:
    """Resize (C, H, W) planes bilinearly, pixel centres aligned as in the continuous frame."""
    resized: Tensor = F.interpolate(
        planes[None], size=(height, width), mode="bilinear", align_corners=False, antialias=antialias
    )
    return resized[0]


def _offset_and_scale(view: View, geometry: Geometry) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the native offset in pixels and the model pixels per native pixel, both (4,) in box order."""
    x_min, y_min, x_max, y_max = view.crop
    height, width = geometry.content(y_max - y_min, x_max - x_min)
    scale = np.array([width / (x_max - x_min), height / (y_max - y_min)])
    return np.array([x_min, y_min, x_min, y_min], dtype=np.float64), np.tile(scale, 2)


def _area_weights(size: int, content: int, geometry: Geometry) -> Tensor:
    """Return (G, size) float32: the share of each native pixel in the mean over each cell of the loss grid.

    Pixels across a border are cut exactly. torch's `area` mode averages whole pixels over overlapping windows instead,
    which is not the area when the sizes do not divide.

    Args:
        size: Native pixels of the axis.
        content: Model pixels that they take.
        geometry: Of the model.
    """
    grid, side = geometry.logit_side, geometry.image_side
    edges = np.arange(grid + 1)[:, None] * (size / grid * (side / content))
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    return torch.from_numpy((np.maximum(overlap, 0) * (grid / size * (content / side))).astype(np.float32))
