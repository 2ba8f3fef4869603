"""Baselines, and the contract of boxes and `segs` that they share with the predictor."""

import numpy as np
import pytest

from medsam_core.imaging.contract import MAX_BOXES, box_region, checked_boxes, write_answer
from medsam_core.imaging.prompts import tight_boxes
from medsam_core.inference.baselines import filled_boxes, inscribed_ellipses
from medsam_core.scores.metrics import dsc


def test_a_box_is_filled_half_open_and_the_later_one_wins() -> None:
    segs = filled_boxes((4, 6), np.array([[1, 0, 4, 2], [3, 1, 6, 4]]))
    assert segs.dtype == np.uint16
    assert segs.tolist() == [[0, 1, 1, 1, 0, 0], [0, 1, 1, 2, 2, 2], [0, 0, 0, 2, 2, 2], [0, 0, 0, 2, 2, 2]]


def test_the_z_range_is_closed_at_both_ends() -> None:
    segs = filled_boxes((5, 4, 4), np.array([[1, 1, 1, 3, 3, 3], [0, 0, 4, 1, 1, 4]]))
    assert np.flatnonzero((segs == 1).any(axis=(1, 2))).tolist() == [1, 2, 3]
    assert np.flatnonzero((segs == 2).any(axis=(1, 2))).tolist() == [4]


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 8), (40, 25), (1, 1, 1), (2, 2, 2), (9, 20, 31), (1, 7, 7)])
def test_an_ellipse_touches_every_side_of_its_box(size: tuple[int, ...]) -> None:
    shape = tuple(length + 5 for length in size)
    low = np.arange(1, 1 + len(size))
    high = low + np.array(size[::-1])
    if len(size) == 3:
        high[2] -= 1
    box = np.concatenate([low, high])[None]
    segs = inscribed_ellipses(shape, box)
    np.testing.assert_array_equal(tight_boxes(segs)[1], box)


def test_an_ellipse_has_the_share_of_its_box_that_geometry_says() -> None:
    flat = inscribed_ellipses((200, 300), np.array([[0, 0, 300, 200]]))
    deep = inscribed_ellipses((60, 80, 100), np.array([[0, 0, 0, 100, 80, 59]]))
    assert np.count_nonzero(flat) / flat.size == pytest.approx(np.pi / 4, abs=2e-3)
    assert np.count_nonzero(deep) / deep.size == pytest.approx(np.pi / 6, abs=2e-3)
    assert dsc(flat, flat[::-1, ::-1]) == 1


def test_no_box_gives_no_answer_and_many_boxes_keep_their_numbers() -> None:
    assert not filled_boxes((3, 3), np.zeros((0, 4), dtype=np.int64)).any()
    assert not filled_boxes((3, 3), np.array([])).any()
    y, x = np.divmod(np.arange(400), 20)
    segs = filled_boxes((20, 20), np.stack([x, y, x + 1, y + 1], axis=1))
    assert segs.ravel().tolist() == list(range(1, 401))


def test_boxes_are_cut_to_the_image() -> None:
    boxes = checked_boxes(np.array([[-3, -3, 2, 2], [4, 1, 99, 99]]), (5, 6))
    assert boxes.tolist() == [[0, 0, 2, 2], [4, 1, 6, 5]]
    assert checked_boxes(np.array([[0, 0, -2, 2, 2, 7]]), (4, 6, 6)).tolist() == [[0, 0, 0, 2, 2, 3]]
    assert box_region(np.array([1, 2, 3, 4, 5, 6])) == (slice(3, 7), slice(2, 5), slice(1, 4))


@pytest.mark.parametrize(
    ("boxes", "shape", "message"),
    [
        ([[0, 0, 2, 2]], (4, 4, 4), r"\(N, 6\)"),
        ([[0, 0, 0, 2, 2, 2]], (4, 4), r"\(N, 4\)"),
        ([0, 0, 2, 2], (4, 4), r"\(N, 4\)"),
        ([[0, 0, 2, 2], [2, 2, 2, 3]], (4, 4), r"\[2, 2, 2, 3\] as box 2"),
        ([[3, 3, 1, 4]], (4, 4), "at least one pixel"),
        ([[4, 0, 6, 2]], (4, 4), "at least one pixel"),
        ([[0, 0, 3, 2, 2, 2]], (4, 4, 4), "at least one pixel"),
        ([[0.5, 0, 2, 2]], (4, 4), "whole pixels"),
    ],
)
def test_boxes_that_break_the_contract_are_refused(boxes: list[int], shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        filled_boxes(shape, np.array(boxes))


def test_more_boxes_than_labels_are_refused() -> None:
    with pytest.raises(ValueError, match=f"at most {MAX_BOXES}"):
        checked_boxes(np.tile([0, 0, 1, 1], (MAX_BOXES + 1, 1)), (1, 1))


def test_the_later_box_wins_in_whatever_order_answers_are_written() -> None:
    segs = np.zeros((1, 3), dtype=np.uint16)
    write_answer(segs, np.array([[False, True, True]]), 2)
    write_answer(segs, np.array([[True, True, False]]), 1)
    assert segs.tolist() == [[1, 2, 2]]
