"""The challenge's contract of a prediction: boxes in, one label map out.

What belongs here: the shape, type and order of boxes and of `segs`. Not here: predicting masks for the boxes
(`inference`, `baselines`) or scoring them (`scoring`).

`segs` has the image's height, width and depth. The mask of the k-th box (from 1) has label k; where masks overlap, the
later box wins. Its type is uint16, as microscopy has images of more than 255 objects.

Boxes are those of `prompts`: half-open in x and y, closed at both ends in z, so that a volume's box is
`x_min, y_min, z_min, x_max, y_max, z_max` with its last slice `z_max`.
"""

import numpy as np
import numpy.typing as npt

MAX_BOXES = int(np.iinfo(np.uint16).max)
"""The most boxes of a case: as many as uint16 has labels."""

_FORMS = {2: "(N, 4) with x_min, y_min, x_max, y_max", 3: "(N, 6) with x_min, y_min, z_min, x_max, y_max, z_max"}


def checked_boxes(boxes: npt.NDArray[np.number], shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Return boxes as int64, clipped to the image.

    Args:
        boxes: (N, 4) for an image or (N, 6) for a volume, whole numbers, native pixels; an empty array is no box.
        shape: (H, W) or (D, H, W).

    Returns:
        (N, 4) or (N, 6); each box has at least one pixel and lies inside the image.

    Raises:
        ValueError: If the shape is wrong, a coordinate is a fraction, a box has no pixel of the image, or there are
            more than `MAX_BOXES`.
    """
    columns = 2 * len(shape)
    if boxes.size == 0:
        return np.zeros((0, columns), dtype=np.int64)
    if boxes.ndim != 2 or boxes.shape[1] != columns or len(boxes) > MAX_BOXES:
        raise ValueError(
            f"boxes: expected shape {_FORMS[len(shape)]} for an array {shape}, at most {MAX_BOXES}, found {boxes.shape}"
        )
    whole = boxes.astype(np.int64)
    if not np.array_equal(whole, boxes):
        raise ValueError("boxes: expected whole pixels, found fractions; round outward first")
    size = np.array(shape[::-1])
    # The z range is closed at both ends; adding one to its end makes it half-open like the other axes.
    closed = np.array([0, 0, 1][: len(shape)])
    low = np.clip(whole[:, : len(shape)], 0, size)
    high = np.clip(whole[:, len(shape) :] + closed, 0, size)
    hollow = np.flatnonzero((low >= high).any(axis=1))
    if len(hollow):
        raise ValueError(
            f"boxes: expected at least one pixel of an array {shape} in each, found {whole[hollow[0]].tolist()} "
            f"as box {hollow[0] + 1} ({len(hollow)} such in all); minima come first, x_max and y_max are exclusive"
        )
    return np.concatenate([low, high - closed], axis=1)


def box_region(box: npt.NDArray[np.int64]) -> tuple[slice, ...]:
    """Return a checked box, (4,) or (6,), as index ranges in array order."""
    axes = len(box) // 2
    low, high = box[:axes].tolist(), box[axes:].tolist()
    if axes == 3:
        high[2] += 1
    return tuple(slice(start, stop) for start, stop in zip(low[::-1], high[::-1], strict=True))


def write_answer(segs: npt.NDArray[np.uint16], mask: npt.NDArray[np.bool_], label: int) -> None:
    """Write the mask of one box into (a part of) `segs` in place; where masks overlap, the highest label stays."""
    segs[mask & (segs < label)] = label
