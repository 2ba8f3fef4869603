"""Scores of a case: which labels are compared, and how label scores become case scores.

What belongs here: one case's ground truth against one predictor's `segs`, in two named modes. Not here: the formulas of
a mask pair (`metrics`), or means over cases (`reporting`).

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
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medsam_core.metrics import dsc, official_nsd, surface_dice

OFFICIAL_DSC_FLOOR = 0.2
"""The challenge gives NSD 0 to a case whose mean DSC is not above this (`compute_metrics.py`)."""

_NAN = float("nan")

Spacing = tuple[float, float, float]
Region = tuple[slice, ...]


@dataclass(frozen=True)
class CaseIdentity:
    """What a case is called in reports.

    Attributes:
        case_id: Unique over the release.
        modality: Canonical modality name.
        dataset: Data set it came from.
        group: Group (patient) it belongs to.
    """

    case_id: str
    modality: str
    dataset: str = ""
    group: str = ""


@dataclass(frozen=True)
class LabelScore:
    """One label's scores; NaN where the label is in neither mask, or a volume has no spacing to measure by.

    Attributes:
        label: Id in the ground truth.
        gt_px: Its voxels in the ground truth.
        pred_px: Its voxels in the prediction.
        dsc: Dice similarity coefficient.
        nsd: NSD within 2 mm of surfaces (volume) or within 2 px of contours (image).
        nsd_official: NSD as the challenge has it; equal to `nsd` for volumes.
    """

    label: int
    gt_px: int
    pred_px: int
    dsc: float
    nsd: float
    nsd_official: float


@dataclass(frozen=True)
class CaseScore:
    """One case's scores in both modes; see the module's docstring.

    Attributes:
        identity: Which case.
        is_3d: Whether it is a volume.
        labels: Scores of every label that was prompted or occurs, ascending by id.
        dsc: Standard mean DSC over labels that are not NaN; NaN without any.
        nsd: Standard mean NSD, likewise.
        dsc_official: Official case DSC.
        nsd_official: Official case NSD.
    """

    identity: CaseIdentity
    is_3d: bool
    labels: tuple[LabelScore, ...]
    dsc: float
    nsd: float
    dsc_official: float
    nsd_official: float

    def case_row(self) -> dict[str, Any]:
        """Return the case as a row of the case table: `reporting.CASE_COLUMNS`."""
        return {
            **asdict(self.identity),
            "is_3d": self.is_3d,
            "n_labels": len(self.labels),
            "n_nan_dsc": sum(bool(np.isnan(label.dsc)) for label in self.labels),
            "n_nan_nsd": sum(bool(np.isnan(label.nsd)) for label in self.labels),
            "dsc": self.dsc,
            "nsd": self.nsd,
            "dsc_official": self.dsc_official,
            "nsd_official": self.nsd_official,
        }

    def label_rows(self) -> list[dict[str, Any]]:
        """Return the labels as rows of the label table: `reporting.LABEL_COLUMNS`."""
        return [{**asdict(self.identity), "is_3d": self.is_3d, **asdict(label)} for label in self.labels]


def score_case(
    identity: CaseIdentity,
    gt: npt.NDArray[Any],
    segs: npt.NDArray[Any],
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
    scores = score_labels(gt, pred, label_ids, spacing_zyx)
    dsc_official, nsd_official = official_case_score(scores, int(gt.max(initial=0)))
    return CaseScore(
        identity=identity,
        is_3d=is_3d,
        labels=tuple(scores),
        dsc=_mean_without_nan([score.dsc for score in scores]),
        nsd=_mean_without_nan([score.nsd for score in scores]),
        dsc_official=dsc_official,
        nsd_official=nsd_official,
    )


def labels_from_order(segs: npt.NDArray[Any], label_ids: Sequence[int], case_id: str) -> npt.NDArray[np.int32]:
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


def score_labels(
    gt: npt.NDArray[Any], pred: npt.NDArray[Any], label_ids: Sequence[int], spacing_zyx: Spacing | None
) -> list[LabelScore]:
    """Score every label that was prompted or occurs in either map, ascending by id.

    Args:
        gt: (H, W) or (D, H, W) integers, 0 background.
        pred: Of the same shape, with the ids of `gt`.
        label_ids: Ids that were prompted.
        spacing_zyx: Voxel spacing of a volume in mm or None.
    """
    regions_gt, regions_pred = _regions(gt), _regions(pred)
    scores = []
    for label in sorted({int(label) for label in label_ids} | regions_gt.keys() | regions_pred.keys()):
        region = _union(regions_gt.get(label), regions_pred.get(label))
        if region is None:
            scores.append(LabelScore(label, 0, 0, _NAN, _NAN, _NAN))
        else:
            scores.append(_score_label(label, gt[region] == label, pred[region] == label, spacing_zyx))
    return scores


def official_case_score(scores: Sequence[LabelScore], largest_label: int) -> tuple[float, float]:
    """Return the challenge's DSC and NSD of a case.

    Args:
        scores: Of every label that occurs in either map.
        largest_label: The largest id of the ground truth, 0 if it is empty.
    """
    by_label = {score.label: score for score in scores}
    counted = [by_label.get(label) for label in range(1, largest_label + 1)]
    case_dsc = _mean([_NAN if score is None else score.dsc for score in counted])
    if not case_dsc > OFFICIAL_DSC_FLOOR:
        return case_dsc, 0.0
    return case_dsc, _mean([_NAN if score is None else score.nsd_official for score in counted])


def _score_label(
    label: int, gt: npt.NDArray[np.bool_], pred: npt.NDArray[np.bool_], spacing_zyx: Spacing | None
) -> LabelScore:
    """Score one label's masks, cut to where either is; a volume without spacing has no NSD."""
    if gt.ndim == 2:
        nsd, official = surface_dice(gt, pred, (1.0, 1.0)), official_nsd(gt, pred, None)
    else:
        nsd = official = _NAN if spacing_zyx is None else official_nsd(gt, pred, spacing_zyx)
    return LabelScore(label, int(np.count_nonzero(gt)), int(np.count_nonzero(pred)), dsc(gt, pred), nsd, official)


def _regions(labels: npt.NDArray[Any]) -> dict[int, Region]:
    """Return the bounding box of every label that occurs."""
    found = ndimage.find_objects(labels.astype(np.int32, copy=False))
    return {index + 1: region for index, region in enumerate(found) if region is not None}


def _union(one: Region | None, other: Region | None) -> Region | None:
    """Return the smallest box around both, where there are both."""
    if one is None or other is None:
        return one or other
    return tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one, other, strict=True))


def _mean(values: Sequence[float]) -> float:
    """Return the mean, NaN of nothing."""
    return float(np.mean(values)) if values else _NAN


def _mean_without_nan(values: Sequence[float]) -> float:
    """Return the mean of the values that are not NaN, NaN of nothing."""
    return _mean([value for value in values if not np.isnan(value)])
