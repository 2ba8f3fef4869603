"""Labels of a slice: ids, areas and tight boxes. What belongs here: computing them. Not here: tables."""

import numpy as np
import numpy.typing as npt

LabelMap = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
LabelStatistics = tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.int32]]


def label_statistics(mask: LabelMap | None) -> LabelStatistics:
    """Return the labels of a slice with their areas and tight boxes.

    Args:
        mask: (H, W) label ids, or None for a slice without labels.

    Returns:
        labels: (L,) int32, original ids above 0, ascending.
        areas: (L,) int64, pixels.
        boxes: (L, 4) int32, tight `xyxy_px` in the native slice, half-open.
    """
    if mask is None:
        return np.empty(0, np.int32), np.empty(0, np.int64), np.empty((0, 4), np.int32)
    width = mask.shape[1]
    flat: LabelMap = mask.reshape(-1)
    starts, stops = _runs(flat, width)
    # Sorting by label keeps each label's runs in the order of rows.
    order = np.argsort(flat[starts], kind="stable")
    starts, stops = starts[order], stops[order]
    ids = flat[starts]
    first = np.flatnonzero(np.diff(ids, prepend=np.zeros(1, ids.dtype)))
    if not first.size:
        return label_statistics(None)
    last = np.append(first[1:], ids.size) - 1
    rows = starts // width
    left = np.minimum.reduceat(starts - rows * width, first)
    right = np.maximum.reduceat(stops - rows * width, first)
    areas = np.add.reduceat(stops - starts, first)
    boxes = np.stack([left, rows[first], right, rows[last] + 1], axis=1)
    return ids[first].astype(np.int32), areas, boxes.astype(np.int32)


def _runs(flat: LabelMap, width: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return where each run of one label above 0 begins and ends in a flattened map; a run ends with its row.

    A label map has thousands of times fewer runs than pixels.
    """
    begins = np.empty(flat.size, np.bool_)
    np.not_equal(flat[1:], flat[:-1], out=begins[1:])
    begins[::width] = True
    starts = np.flatnonzero(begins)
    labelled = flat[starts] != 0
    return starts[labelled], np.append(starts[1:], flat.size)[labelled]
