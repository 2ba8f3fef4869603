"""Box prompts: tight boxes of labels, their jitter, and the two conventions of maxima.

What belongs here: boxes in the native frame of a slice or volume. Not here: the model frame, or which label is drawn.

Inside the project boxes are half-open in x and y: `x_max` is one past the last pixel. Files of the challenge store the
last pixel itself. The z range of a volume's box is closed at both ends in both conventions, as in the organisers'
baseline. A 2D box is `x_min, y_min, x_max, y_max`; a 3D box is `x_min, y_min, z_min, x_max, y_max, z_max`.
"""

import numpy as np
import numpy.typing as npt
from scipy import ndimage


def jitter_boxes(
    boxes: npt.NDArray[np.integer],
    outward: npt.NDArray[np.integer],
    height: npt.ArrayLike,
    width: npt.ArrayLike,
) -> npt.NDArray[np.int32]:
    """Move every side of the boxes, and no further than the slice's edge.

    Args:
        boxes: (..., 4) integers, `xyxy_px` of the native slice, half-open.
        outward: (..., 4) integers, native pixels by which each side moves out, or in if negative, in the order of the
            box. Opposite sides must not meet.
        height: Slice height in pixels, broadcast against the leading shape of `boxes`.
        width: Slice width in pixels, likewise.

    Returns:
        (..., 4) int32, `xyxy_px` of the native slice, half-open.
    """
    moved = boxes.astype(np.int64) + outward * np.array([-1, -1, 1, 1])
    height, width = np.asarray(height), np.asarray(width)
    upper = np.stack(np.broadcast_arrays(width, height, width, height), axis=-1)
    clipped: npt.NDArray[np.int32] = np.clip(moved, 0, upper).astype(np.int32)
    return clipped


def inclusive_to_half_open(boxes: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Convert boxes as files store them, (N, 4) or (N, 6) with inclusive maxima, to half-open x and y.

    Raises:
        ValueError: If the boxes have neither 4 nor 6 columns.
    """
    return boxes.astype(np.int64) + _last_pixel_offset(boxes)


def tight_boxes(mask: npt.NDArray[np.integer]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the labels of a mask and the tight box of each.

    Args:
        mask: (H, W) or (D, H, W) integer label map; 0 is background.

    Returns:
        (N,) int64 label ids, ascending, and (N, 4) or (N, 6) int64 boxes, half-open in x and y, closed in z.
    """
    columns = 4 if mask.ndim == 2 else 6
    found = [(index + 1, box) for index, box in enumerate(ndimage.find_objects(mask)) if box is not None]
    labels = np.array([label for label, _ in found], dtype=np.int64)
    boxes = np.array([_box_of(slices) for _, slices in found], dtype=np.int64)
    return labels, boxes.reshape(-1, columns)


def _box_of(slices: tuple[slice, ...]) -> list[int]:
    """Turn index ranges in array order, (y, x) or (z, y, x), into a box."""
    y, x = slices[-2:]
    if len(slices) == 2:
        return [x.start, y.start, x.stop, y.stop]
    z = slices[0]
    return [x.start, y.start, z.start, x.stop, y.stop, z.stop - 1]


def _last_pixel_offset(boxes: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    offsets = {4: [0, 0, 1, 1], 6: [0, 0, 0, 1, 1, 0]}
    if boxes.ndim != 2 or boxes.shape[1] not in offsets:
        raise ValueError(
            f"boxes: expected shape (N, 4) for a slice or (N, 6) for a volume, found {boxes.shape}; "
            "give one row per box"
        )
    return np.array(offsets[boxes.shape[1]], dtype=np.int64)
