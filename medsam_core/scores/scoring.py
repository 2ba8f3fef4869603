"""Scores of a case: which labels are compared, and how label scores become case scores.

What belongs here: one case's ground truth against one predictor's `segs`, in two named modes. Not here: what is
computed of a label (`metric_table`), how scores become rows (`case_scores`), or means over cases (`reporting`).

A prediction labels by box order, 1-based: the challenge's contract. Scoring maps this order back to the ids of the
ground truth (`docs/adr/0006-scoring.md`). Then

- **official**: what the challenge's `compute_metrics.py` gives. Labels 1 to the largest of the ground truth, whether
  they occur or not; a label in neither is NaN and makes the case NaN; NSD is 0 unless the case's DSC is above 0.2;
  images are scored as volumes one voxel thick. Predicted labels above the largest are ignored. Two of its accidents are
  left out: rounding to 4 decimals, and label 255 of an 8-bit ground truth wrapping round to no label at all.
- **standard**: every label that was prompted or occurs; NaN is left out of the means and counted; no floor; images are
  scored by their contours, in pixels.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medsam_core.scores import metric_table
from medsam_core.scores.case_scores import CaseIdentity, CaseScore, LabelScore
from medsam_core.scores.metric_table import LabelMasks, Metric, Spacing

OFFICIAL_DSC_FLOOR = 0.2
"""The challenge gives NSD 0 to a case whose mean DSC is not above this (`compute_metrics.py`)."""

_NAN = float("nan")

Labels = npt.NDArray[np.integer]
Region = tuple[slice, ...]


def score_case(
    identity: CaseIdentity,
    gt: Labels,
    segs: Labels,
    label_ids: Sequence[int],
    spacing_zyx: Spacing | None,
    *,
    is_3d: bool,
) -> CaseScore:
    """Score a prediction of a case.

    Args:
        identity: Names the case in errors and rows.
        gt: (H, W) or (D, H, W) integers, original label ids, 0 background.
        segs: Of the same shape, integers: k where the k-th box (from 1) answered, 0 elsewhere.
        label_ids: Original id of each box, in box order.
        spacing_zyx: Voxel spacing of a volume in mm; None leaves its NSD NaN. Not looked at for images.
        is_3d: Whether the case is a volume.

    Returns:
        The case's scores.

    Raises:
        ValueError: Shapes differ or do not fit `is_3d`, or `segs` holds a label that no box has.
    """
    if gt.shape != segs.shape or gt.ndim != 2 + is_3d:
        expected = "(D, H, W)" if is_3d else "(H, W)"
        raise ValueError(
            f"case {identity.case_id}: expected ground truth and prediction of one shape {expected}, "
            f"found {gt.shape} and {segs.shape}"
        )
    pred = labels_from_order(segs, label_ids, identity.case_id)
    scores = tuple(score_labels(gt, pred, label_ids, spacing_zyx))
    largest = int(gt.max(initial=0))
    values = {metric.name: _case_value(metric, scores, largest) for metric in metric_table.METRICS}
    return CaseScore(identity, is_3d, scores, values)


def labels_from_order(segs: Labels, label_ids: Sequence[int], case_id: str) -> npt.NDArray[np.int32]:
    """Return `segs` with box order, 1-based, replaced by the original label ids.

    Raises:
        ValueError: `segs` holds a label that no box has, or an id is not positive.
    """
    ids = np.concatenate([np.zeros(1, np.int32), np.asarray(label_ids, dtype=np.int32).ravel()])
    if (ids[1:] <= 0).any():
        raise ValueError(f"case {case_id}: expected positive label ids, found {ids[1:].min()}")
    if segs.size and not 0 <= int(segs.min()) <= int(segs.max()) <= len(label_ids):
        raise ValueError(
            f"case {case_id}: expected labels 0 to {len(label_ids)}, one per box, "
            f"found {segs.min()} to {segs.max()}; score a prediction with the boxes it was made for"
        )
    mapped: npt.NDArray[np.int32] = ids[segs]
    return mapped


def score_labels(gt: Labels, pred: Labels, label_ids: Sequence[int], spacing_zyx: Spacing | None) -> list[LabelScore]:
    """Score every label that was prompted or occurs in either map, ascending by id.

    Args:
        gt: (H, W) or (D, H, W) integers, 0 background.
        pred: Of the same shape, with the ids of `gt`.
        label_ids: Ids that were prompted.
        spacing_zyx: Voxel spacing of a volume in mm or None.
    """
    regions_gt, regions_pred = _regions(gt), _regions(pred)
    functions = metric_table.label_functions()
    scores = []
    for label in sorted({int(label) for label in label_ids} | regions_gt.keys() | regions_pred.keys()):
        region = _union(regions_gt.get(label), regions_pred.get(label))
        if region is None:
            scores.append(LabelScore(label, 0, 0, dict.fromkeys(functions, _NAN)))
            continue
        masks = LabelMasks(gt[region] == label, pred[region] == label, spacing_zyx)
        values = {column: function(masks) for column, function in functions.items()}
        scores.append(LabelScore(label, int(np.count_nonzero(masks.gt)), int(np.count_nonzero(masks.pred)), values))
    return scores


def _case_value(metric: Metric, scores: Sequence[LabelScore], largest_label: int) -> float:
    """Return a metric's value of a case.

    Args:
        metric: Says the mode.
        scores: Of every label that was prompted or occurs in either map.
        largest_label: The largest id of the ground truth, 0 if it is empty.
    """
    if metric.zero_unless and not _case_value(metric.zero_unless, scores, largest_label) > OFFICIAL_DSC_FLOOR:
        return 0.0
    column = metric_table.label_column(metric)
    by_label = {score.label: score.values[column] for score in scores}
    if metric.mode == "official":
        return _mean([by_label.get(label, _NAN) for label in range(1, largest_label + 1)])
    return _mean([value for value in by_label.values() if not np.isnan(value)])


def _regions(labels: Labels) -> dict[int, Region]:
    """Return the bounding box of every label that occurs."""
    found = ndimage.find_objects(labels.astype(np.int32, copy=False))
    return {index + 1: region for index, region in enumerate(found) if region is not None}


def _union(one: Region | None, other: Region | None) -> Region | None:
    """Return the smallest box around both; the only one if one is None."""
    if one is None or other is None:
        return one or other
    return tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one, other, strict=True))


def _mean(values: Sequence[float]) -> float:
    """Return the mean; NaN if there are no values."""
    return float(np.mean(values)) if values else _NAN
