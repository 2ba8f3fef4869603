"""What the model frame shows of a slice, and boxes between the two frames, in numpy alone.

What belongs here: views, their offsets and scales, boxes and square grids seen through them. Not here: resampling
(`resampling`), how a slice lies in the square (`geometry`), or boxes that stay in the native frame (`prompts`). Nothing
here imports torch.

Legend: H W native pixels, S side of the model frame in pixels, K boxes.
Coordinates are continuous: pixel i covers [i, i + 1), so boxes are half-open and scale without rounding.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from medsam_core.base.geometry import Geometry

Boxes = npt.NDArray[np.number]
_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True)
class View:
    """What part of a slice the model frame shows, and in which orientation.

    The crop is resized into the square; then the square, padding included, is flipped, then turned.

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

    @property
    def window(self) -> tuple[slice, slice]:
        """The crop as index ranges of the native rows and columns."""
        x_min, y_min, x_max, y_max = self.crop
        return slice(y_min, y_max), slice(x_min, x_max)


def orient(square: npt.NDArray[_Scalar], view: View) -> npt.NDArray[_Scalar]:
    """Flip and turn the last two axes of a square array, (..., n, n), as the view says.

    Returns:
        The array itself where the view is upright, else a new contiguous one.
    """
    if view.flip_x:
        square = np.flip(square, -1)
    if view.flip_y:
        square = np.flip(square, -2)
    if view.quarter_turns:
        square = np.rot90(square, view.quarter_turns, axes=(-2, -1))
    return np.ascontiguousarray(square) if view.flip_x or view.flip_y or view.quarter_turns else square


def boxes_to_model(boxes: Boxes, view: View, geometry: Geometry) -> npt.NDArray[np.float32]:
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
    x_min, y_min, x_max, y_max = ((boxes.astype(np.float64) - offset) * scale).T
    if view.flip_x:
        x_min, x_max = side - x_max, side - x_min
    if view.flip_y:
        y_min, y_max = side - y_max, side - y_min
    for _ in range(view.quarter_turns):
        x_min, y_min, x_max, y_max = y_min, side - x_max, y_max, side - x_min
    return np.stack([x_min, y_min, x_max, y_max], axis=-1).astype(np.float32)


def _offset_and_scale(view: View, geometry: Geometry) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the native offset in pixels and the model pixels per native pixel, both (4,) in box order."""
    x_min, y_min, x_max, y_max = view.crop
    height, width = geometry.content(y_max - y_min, x_max - x_min)
    scale = np.array([width / (x_max - x_min), height / (y_max - y_min)])
    return np.array([x_min, y_min, x_min, y_min], dtype=np.float64), np.tile(scale, 2)
