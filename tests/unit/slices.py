"""Small tables and readers of slices for the tests of plan and rendering. Not here: anything with a store."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medsam_core.base.data import SliceTable
from medsam_core.imaging.prompts import tight_boxes


class ArrayReader:
    """A `SliceReader` of arrays in memory."""

    def __init__(self, images: Sequence[npt.NDArray[np.uint8]], masks: Sequence[npt.NDArray[Any] | None]) -> None:
        self.images, self.masks = images, masks

    def read(self, row: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any] | None]:
        return self.images[row], self.masks[row]


def table_of_counts(labels_by_modality: Sequence[Sequence[int]], seed: int = 0) -> SliceTable:
    """Return a table with one slice per inner number, holding that many labels with random boxes and ids."""
    rng = np.random.default_rng(seed)
    counts = np.array([count for slices in labels_by_modality for count in slices], dtype=np.int64)
    modality = np.repeat(np.arange(len(labels_by_modality)), [len(slices) for slices in labels_by_modality])
    start = np.concatenate([[0], np.cumsum(counts)])
    height, width = rng.integers(1, 60, (2, len(counts)))
    owner = np.repeat(np.arange(len(counts)), counts)
    low = np.floor(rng.random((len(owner), 2)) * np.stack([width[owner], height[owner]], axis=1)).astype(int)
    room = np.stack([width[owner], height[owner]], axis=1) - low
    high = low + 1 + np.floor(rng.random(low.shape) * room).astype(int)
    ids = np.arange(start[-1]) - start[owner] + 1
    return SliceTable(
        modalities=tuple(f"M{index}" for index in range(len(labels_by_modality))),
        modality=modality.astype(np.int8),
        height=height.astype(np.int32),
        width=width.astype(np.int32),
        label_start=start,
        label_id=(ids * 3).astype(np.int32),
        label_area=np.prod(high - low, axis=1),
        label_box=np.concatenate([low, high], axis=1).astype(np.int32),
    )


def table_of_masks(masks: Sequence[npt.NDArray[Any]], modality: Sequence[int]) -> SliceTable:
    """Return the table that describes label maps in memory."""
    found = [tight_boxes(mask) for mask in masks]
    ids = np.concatenate([labels for labels, _ in found])
    areas = [(mask == label).sum() for mask, (labels, _) in zip(masks, found, strict=True) for label in labels]
    return SliceTable(
        modalities=tuple(f"M{index}" for index in range(max(modality) + 1)),
        modality=np.array(modality, dtype=np.int8),
        height=np.array([mask.shape[0] for mask in masks], dtype=np.int32),
        width=np.array([mask.shape[1] for mask in masks], dtype=np.int32),
        label_start=np.concatenate([[0], np.cumsum([len(labels) for labels, _ in found])]).astype(np.int64),
        label_id=ids.astype(np.int32),
        label_area=np.array(areas, dtype=np.int64),
        label_box=np.concatenate([boxes for _, boxes in found]).astype(np.int32),
    )


def half_open_to_inclusive(boxes: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Convert half-open boxes, (N, 4) or (N, 6), to the inclusive maxima that files store."""
    return boxes.astype(np.int64) - np.array({4: [0, 0, 1, 1], 6: [0, 0, 0, 1, 1, 0]}[boxes.shape[1]])
