"""What a label map shows: ids, areas and tight boxes. What belongs here: numbers of one slice. Not here: tables."""

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
    flat, width = mask.reshape(-1), mask.shape[1]
    # Most of a map is background. Sorting what is left by label keeps each label's pixels in the order of rows.
    pixels = np.flatnonzero(flat != 0)
    pixels = pixels[np.argsort(flat[pixels], kind="stable")]
    found = flat[pixels]
    starts = np.flatnonzero(np.diff(found, prepend=np.zeros(1, found.dtype)))
    ends = np.append(starts, pixels.size)[1:]
    columns = pixels - pixels // width * width
    left, right = (edge.reduceat(columns, starts) if starts.size else columns for edge in (np.minimum, np.maximum))
    boxes = np.stack([left, pixels[starts] // width, right + 1, pixels[ends - 1] // width + 1], axis=1)
    return found[starts].astype(np.int32), ends - starts, boxes.astype(np.int32)
