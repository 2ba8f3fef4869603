"""DSC and NSD equal the challenge's own evaluation, to 1e-9 (`tests/golden/README.md`).

The `real` rows need the cases they name: MEDSAM_GOLDEN_DATA is the folder with the modality folders.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from medsam_core.scores.case_scores import CaseIdentity, CaseScore
from medsam_core.scores.metrics import dsc, official_nsd
from medsam_core.scores.scoring import score_case

GOLDEN = json.loads(
    (Path(os.environ.get("MEDSAM_GOLDEN", "tests/golden")) / "metrics_golden.json").read_text(encoding="utf-8")
)
REAL_DATA = os.environ.get("MEDSAM_GOLDEN_DATA")
TOLERANCE = 1e-9


def ranges(bounds: list[list[int]]) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in bounds)


def binary(row: dict[str, Any], side: str) -> npt.NDArray[np.bool_]:
    mask = np.zeros(row["shape"], dtype=bool)
    if row[side] is not None:
        mask[ranges(row[side])] = True
    return mask


def labelled(row: dict[str, Any], side: str) -> npt.NDArray[np.uint8]:
    labels = np.zeros(row["shape"], dtype=np.uint8)
    for label, *bounds in row[side]:
        labels[ranges(bounds)] = label
    return labels


def officially(gt: npt.NDArray[Any], pred: npt.NDArray[Any], spacing: tuple[float, float, float] | None) -> CaseScore:
    every_id = range(1, int(max(gt.max(), pred.max())) + 1)
    return score_case(CaseIdentity("golden", "CT"), gt, pred, every_id, spacing, is_3d=gt.ndim == 3)


def assert_golden(found: tuple[float, float], row: dict[str, Any]) -> None:
    expected = [np.nan if row[name] is None else row[name] for name in ("dsc", "nsd")]
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE, equal_nan=True)


def test_the_golden_tolerance_is_the_official_one() -> None:
    from medsam_core.scores.metrics import TOLERANCE as OFFICIAL

    assert GOLDEN["tolerance"] == OFFICIAL


@pytest.mark.parametrize("row", GOLDEN["masks"], ids=lambda row: row["name"])
def test_masks(row: dict[str, Any]) -> None:
    gt, pred = binary(row, "gt"), binary(row, "pred")
    spacing = tuple(row["spacing"]) if gt.ndim == 3 else None
    assert_golden((dsc(gt, pred), official_nsd(gt, pred, spacing)), row)


@pytest.mark.parametrize("row", GOLDEN["labelled"], ids=lambda row: row["name"])
def test_labelled_cases(row: dict[str, Any]) -> None:
    score = officially(labelled(row, "gt"), labelled(row, "pred"), None)
    assert_golden((score.values["dsc_official"], score.values["nsd_official"]), row)


@pytest.mark.skipif(REAL_DATA is None, reason="set MEDSAM_GOLDEN_DATA to the folder of real npz cases")
@pytest.mark.parametrize("row", GOLDEN["real"], ids=lambda row: row["file"])
def test_real_cases(row: dict[str, Any]) -> None:
    with np.load(Path(REAL_DATA or "") / row["file"], allow_pickle=False) as case:
        gt = case["gts"]
        spacing = tuple(case["spacing"].tolist()) if gt.ndim == 3 else None
    pred = np.zeros_like(gt)
    for label in np.unique(gt[gt > 0]):
        pred[np.roll(gt == label, row["roll"], axis=tuple(range(gt.ndim)))] = label
    score = officially(gt, pred, spacing)
    assert_golden((score.values["dsc_official"], score.values["nsd_official"]), row)
