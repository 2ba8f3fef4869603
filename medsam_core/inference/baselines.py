"""Predictors that use the boxes alone, as baselines.

What belongs here: masks that are a function of boxes and shape. Not here: anything that reads the image.

Boxes and predictions are those of `contract`.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from medsam_core.imaging.contract import box_region, checked_boxes, write_answer

Draw = Callable[[tuple[int, ...]], npt.NDArray[np.bool_]]


def filled_boxes(shape: tuple[int, ...], boxes: npt.NDArray[np.number]) -> npt.NDArray[np.uint16]:
    """Fill every box with its label.

    Args:
        shape: (H, W) or (D, H, W).
        boxes: (N, 4) or (N, 6), half-open in x and y, closed in z.

    Returns:
        `segs`, uint16 of `shape`.

    Raises:
        ValueError: The boxes break the contract.
    """
    return _drawn(shape, boxes, lambda size: np.ones(size, dtype=bool))


def inscribed_ellipses(shape: tuple[int, ...], boxes: npt.NDArray[np.number]) -> npt.NDArray[np.uint16]:
    """Answer every box with the ellipse, or in a volume the ellipsoid, that touches all of its sides.

    A pixel belongs to it if its centre does, so every box gets at least one pixel.

    Args:
        shape: (H, W) or (D, H, W).
        boxes: (N, 4) or (N, 6), half-open in x and y, closed in z.

    Returns:
        `segs`, uint16 of `shape`.

    Raises:
        ValueError: The boxes break the contract.
    """
    return _drawn(shape, boxes, _ellipsoid)


def _drawn(shape: tuple[int, ...], boxes: npt.NDArray[np.number], draw: Draw) -> npt.NDArray[np.uint16]:
    segs = np.zeros(shape, dtype=np.uint16)
    for label, box in enumerate(checked_boxes(boxes, shape), start=1):
        inside = segs[box_region(box)]
        write_answer(inside, draw(inside.shape), label)
    return segs


def _ellipsoid(size: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Return which pixel centres of a box of this size lie within the ellipsoid that touches its sides."""
    squares = np.zeros(size)
    for axis, length in enumerate(size):
        centres = (2 * np.arange(length) + 1) / length - 1
        squares += np.expand_dims(np.square(centres), [other for other in range(len(size)) if other != axis])
    inside: npt.NDArray[np.bool_] = squares <= 1
    return inside
