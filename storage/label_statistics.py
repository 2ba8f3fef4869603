"""What a label map shows: ids, areas and tight boxes. What belongs here: numbers of one slice. Not here: tables."""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

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
    counts = np.zeros(1, np.int64) if mask is None else np.bincount(mask.reshape(-1))
    counts[0] = 0
    labels = np.flatnonzero(counts)
    if mask is None or not labels.size:
        return np.empty(0, np.int32), np.empty(0, np.int64), np.empty((0, 4), np.int32)
    # Ids are made dense first: the search for boxes takes time and memory by the largest id.
    dense = np.zeros(counts.size, dtype=np.int32)
    dense[labels] = np.arange(1, labels.size + 1)
    boxes = [_box(found) for found in ndimage.find_objects(dense[mask])]
    return labels.astype(np.int32), counts[labels].astype(np.int64), np.array(boxes, np.int32)


def _box(found: tuple[slice, ...]) -> tuple[int, int, int, int]:
    rows, columns = found
    return columns.start, rows.start, columns.stop, rows.stop
