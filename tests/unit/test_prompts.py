"""Box prompts: conventions, tight boxes, jitter."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medsam_core.imaging.prompts import inclusive_to_half_open, jitter_boxes, tight_boxes
from tests.unit.slices import half_open_to_inclusive

label_maps = hnp.arrays(
    dtype=st.sampled_from([np.uint8, np.uint16, np.int64]),
    shape=hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=8),
    elements=st.sampled_from([0, 1, 2, 7, 255]),
)


def test_inclusive_maxima_become_half_open_in_x_and_y_and_z_stays_closed() -> None:
    np.testing.assert_array_equal(inclusive_to_half_open(np.array([[2, 3, 4, 5]])), [[2, 3, 5, 6]])
    np.testing.assert_array_equal(inclusive_to_half_open(np.array([[2, 3, 1, 4, 5, 9]])), [[2, 3, 1, 5, 6, 9]])


@pytest.mark.parametrize("columns", [4, 6])
def test_conventions_round_trip(columns: int) -> None:
    boxes = np.random.default_rng(0).integers(0, 100, (20, columns))
    np.testing.assert_array_equal(half_open_to_inclusive(inclusive_to_half_open(boxes)), boxes)


def test_an_unsigned_box_at_the_largest_value_does_not_wrap() -> None:
    boxes = np.array([[0, 0, 255, 255]], dtype=np.uint8)
    np.testing.assert_array_equal(inclusive_to_half_open(boxes), [[0, 0, 256, 256]])


@pytest.mark.parametrize("shape", [(4,), (2, 5), (1, 2, 4)])
def test_another_shape_of_boxes_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected shape \(N, 4\)"):
        inclusive_to_half_open(np.zeros(shape, dtype=np.int64))


@settings(deadline=None)
@given(label_maps)
def test_tight_boxes_hold_every_pixel_and_no_empty_border(mask: npt.NDArray[Any]) -> None:
    labels, boxes = tight_boxes(mask)
    np.testing.assert_array_equal(labels, [label for label in np.unique(mask) if label])
    assert boxes.shape == (len(labels), 2 * mask.ndim)
    for label, box in zip(labels, boxes, strict=True):
        where = np.argwhere(mask == label)[:, ::-1]  # columns x, y(, z)
        low, high = where.min(axis=0), where.max(axis=0)
        high[:2] += 1
        np.testing.assert_array_equal(box, np.concatenate([low, high]))


def test_ids_up_to_the_largest_of_16_bits_are_kept() -> None:
    mask = np.zeros((4, 5), dtype=np.uint16)
    mask[1, 2:4] = 65535
    labels, boxes = tight_boxes(mask)
    np.testing.assert_array_equal(labels, [65535])
    np.testing.assert_array_equal(boxes, [[2, 1, 4, 2]])


def test_each_side_moves_outward_by_its_own_amount() -> None:
    moved = jitter_boxes(np.array([[10, 20, 30, 40]]), np.array([[1, 2, 3, 4]]), 100, 100)
    np.testing.assert_array_equal(moved, [[9, 18, 33, 44]])


def test_jitter_is_clipped_to_the_edges_of_the_slice() -> None:
    moved = jitter_boxes(np.array([[1, 2, 58, 39]]), np.array([[5, 5, 5, 5]]), 40, 60)
    np.testing.assert_array_equal(moved, [[0, 0, 60, 40]])


@settings(deadline=None)
@given(st.data())
def test_jittered_boxes_contain_the_box_within_bounds(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    x_min, y_min = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x_max, y_max = data.draw(st.integers(x_min + 1, width)), data.draw(st.integers(y_min + 1, height))
    outward = np.array(data.draw(st.lists(st.integers(0, 5), min_size=4, max_size=4)))
    box = np.array([x_min, y_min, x_max, y_max], dtype=np.int32)
    moved = jitter_boxes(box, outward, height, width)
    assert moved.dtype == np.int32
    assert (moved[:2] <= box[:2]).all()
    assert (moved[2:] >= box[2:]).all()
    assert (np.abs(moved - box) <= outward).all()
    assert (moved >= 0).all()
    assert moved[2] <= width
    assert moved[3] <= height
