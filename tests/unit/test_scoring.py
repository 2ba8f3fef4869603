"""Case scores in both modes: order to ids, NaN, gaps, the floor, and the contract."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from medsam_core.scores.case_scores import CaseIdentity, CaseScore
from medsam_core.scores.metrics import dsc, official_nsd, surface_dice
from medsam_core.scores.scoring import labels_from_order, score_case

IDENTITY = CaseIdentity("XRay/a", "XRay", "set", "patient")


def image(*squares: tuple[int, int, int], side: int = 32) -> npt.NDArray[np.uint16]:
    """Return a label map with squares of 8 pixels: label, y, x."""
    labels = np.zeros((side, side), dtype=np.uint16)
    for label, y, x in squares:
        labels[y : y + 8, x : x + 8] = label
    return labels


def scored(gt: npt.NDArray[Any], segs: npt.NDArray[Any], ids: list[int]) -> CaseScore:
    return score_case(IDENTITY, gt, segs, ids, None, is_3d=False)


def test_box_order_is_mapped_back_to_original_ids() -> None:
    gt = image((7, 0, 0), (2, 16, 16))
    segs = image((1, 0, 0), (2, 16, 16))
    assert scored(gt, segs, [7, 2]).values["dsc"] == 1
    assert scored(gt, segs, [2, 7]).values["dsc"] == 0


def test_labels_that_skip_an_id_are_nan_officially_and_scored_in_the_standard_mode() -> None:
    score = scored(image((2, 4, 4)), image((1, 4, 4)), [2])
    assert np.isnan(score.values["dsc_official"])
    assert score.values["nsd_official"] == 0
    assert (score.values["dsc"], score.values["nsd"]) == (1, 1)
    assert [label.label for label in score.labels] == [2]


def test_nan_is_counted_and_left_out_in_the_standard_mode() -> None:
    gt, segs = image((1, 0, 0)), image((1, 0, 0))
    score = scored(gt, segs, [1, 5])
    assert np.isnan(score.labels[1].values["dsc"])
    assert score.values["dsc"] == 1
    row = score.case_row()
    assert (row["n_labels"], row["n_nan_dsc"], row["n_nan_nsd"]) == (2, 1, 1)


def test_a_prompted_label_that_is_not_there_scores_zero_when_answered() -> None:
    score = scored(image((1, 0, 0)), image((1, 0, 0), (2, 16, 16)), [1, 5])
    assert [label.values["dsc"] for label in score.labels] == [1, 0]
    assert score.values["dsc"] == 0.5
    assert score.values["dsc_official"] == 1, "labels above the largest of the ground truth are ignored"


def test_an_object_nobody_prompted_counts_as_missed() -> None:
    score = scored(image((1, 0, 0), (2, 16, 16)), image((1, 0, 0)), [1])
    assert score.values["dsc"] == score.values["dsc_official"] == 0.5


def test_nsd_is_forced_to_zero_officially_only() -> None:
    gt, segs = np.zeros((2, 32, 32), dtype=np.uint8)
    gt[0:16, 0:16] = 1
    segs[14:18, 0:16] = 1
    score = scored(gt, segs, [1])
    assert score.values["dsc"] == score.values["dsc_official"] == pytest.approx(0.2)
    assert score.values["nsd_official"] == 0
    assert score.labels[0].values["nsd_official"] == pytest.approx(0.4358424760397975, abs=1e-9)
    assert score.values["nsd"] > 0


def test_images_have_two_nsds_and_volumes_one() -> None:
    gt, segs = image((1, 0, 0)), image((1, 0, 3))
    flat = scored(gt, segs, [1])
    assert flat.values["nsd_official"] == pytest.approx(0.9227336684159948, abs=1e-9)
    assert flat.values["nsd"] == pytest.approx(0.6297503756456382, abs=1e-9)
    deep = score_case(IDENTITY, gt[None], segs[None], [1], (1.0, 1.0, 1.0), is_3d=True)
    assert deep.values["nsd"] == deep.values["nsd_official"] == flat.values["nsd_official"]


def test_a_volume_without_spacing_keeps_its_dsc_and_has_no_nsd() -> None:
    volume = image((1, 0, 0))[None]
    score = score_case(IDENTITY, volume, volume, [1], None, is_3d=True)
    assert score.values["dsc"] == score.values["dsc_official"] == 1
    assert np.isnan(score.values["nsd"])
    assert np.isnan(score.values["nsd_official"])
    assert score.case_row()["n_nan_nsd"] == 1


def test_nothing_in_either_is_nan_and_official_nsd_zero() -> None:
    empty = np.zeros((4, 4), dtype=np.uint8)
    score = scored(empty, empty, [])
    assert np.isnan(score.values["dsc"])
    assert np.isnan(score.values["dsc_official"])
    assert score.values["nsd_official"] == 0
    assert score.labels == ()


def test_more_than_255_labels_and_large_ids_are_kept_apart() -> None:
    ids = [1000 + 200 * index for index in range(300)]
    order = np.arange(1, 301, dtype=np.uint16).reshape(15, 20).repeat(2, axis=0).repeat(2, axis=1)
    gt = labels_from_order(order, ids, "a").astype(np.uint16)
    score = scored(gt, order, ids)
    assert [label.label for label in score.labels] == ids
    assert score.values["dsc"] == 1
    assert scored(gt, np.roll(order, 2, axis=1), ids).values["dsc"] == 0


def test_an_eight_bit_label_255_does_not_wrap() -> None:
    gt = image((255, 0, 0)).astype(np.uint8)
    assert scored(gt, image((1, 0, 0)), [255]).values["dsc"] == 1


@pytest.mark.parametrize("shift", [(-3, -2), (3, -2), (-3, 2), (3, 2)])
def test_a_prediction_that_reaches_beyond_its_object_is_scored_whole(shift: tuple[int, int]) -> None:
    gt = image((1, 12, 12), (2, 22, 3))
    segs = np.roll(gt, shift, axis=(0, 1))
    score = scored(gt, segs, [1, 2])
    for label in score.labels:
        masks = gt == label.label, segs == label.label
        assert label.values["dsc"] == dsc(*masks)
        assert label.values["nsd"] == surface_dice(*masks, (1.0, 1.0))
        assert label.values["nsd_official"] == official_nsd(*masks, None)


def test_rows_carry_identity_and_pixels() -> None:
    score = scored(image((3, 0, 0)), image((1, 0, 4)), [3])
    (row,) = score.label_rows()
    assert row["case_id"] == "XRay/a"
    assert row["group"] == "patient"
    assert (row["label"], row["gt_px"], row["pred_px"], row["dsc"]) == (3, 64, 64, 0.5)


def test_a_prediction_that_breaks_the_contract_is_refused() -> None:
    gt = image((1, 0, 0))
    with pytest.raises(ValueError, match=r"XRay/a: expected labels 0 to 1.*found 0 to 2"):
        scored(gt, image((2, 0, 0)), [1])
    with pytest.raises(ValueError, match="of one shape"):
        scored(gt, gt[:4], [1])
    with pytest.raises(ValueError, match="of one shape"):
        score_case(IDENTITY, gt, gt, [1], None, is_3d=True)
    with pytest.raises(ValueError, match="positive label ids"):
        scored(gt, gt, [0])
