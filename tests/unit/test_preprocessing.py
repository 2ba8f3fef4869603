"""The one preprocessing: image, boxes and masks stay aligned, and the ways back are inverses."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsam_core.base.geometry import PADDED, SQUARE, Geometry
from medsam_core.imaging.preprocessing import image_to_model, logits_to_native, masks_to_grid
from medsam_core.imaging.resampling import NumpyResampler, Resampler
from medsam_core.imaging.torch_resampling import TorchResampler, as_tensor
from medsam_core.imaging.views import View, boxes_to_model, orient
from tests.inverses import boxes_to_native

both = pytest.mark.parametrize("resampler", [TorchResampler(), NumpyResampler()], ids=["torch", "numpy"])

SIDE = 96
"""Model side of the exact tests: a multiple of every crop side used with it."""


def square(side: int) -> Geometry:
    """Return a geometry whose loss grid is as fine as its image."""
    return Geometry(side, 1, side)


def draw_view(data: st.DataObject, crop: tuple[int, int, int, int]) -> View:
    """Draw flips and turns for a crop."""
    return View(crop, data.draw(st.booleans()), data.draw(st.booleans()), data.draw(st.integers(0, 3)))


def draw_box(data: st.DataObject, outer: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Draw a box of at least one pixel inside another."""
    x_min, y_min = data.draw(st.integers(outer[0], outer[2] - 1)), data.draw(st.integers(outer[1], outer[3] - 1))
    return (x_min, y_min, data.draw(st.integers(x_min + 1, outer[2])), data.draw(st.integers(y_min + 1, outer[3])))


def block(height: int, width: int, box: tuple[int, int, int, int]) -> npt.NDArray[np.bool_]:
    """Return a mask of one rectangle."""
    mask = np.zeros((height, width), dtype=np.bool_)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def extent(mask: npt.NDArray[np.bool_]) -> list[int]:
    """Return the half-open tight box of a mask."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@both
@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_marked_block_lands_in_one_place_in_image_box_and_mask(resampler: Resampler, data: st.DataObject) -> None:
    sides = st.sampled_from([2, 3, 6, 8, 12, 16, 24, 48])
    width, height, left, top = data.draw(sides), data.draw(sides), data.draw(st.integers(0, 9)), 5
    crop = (left, top, left + width, top + height)
    box, view = draw_box(data, crop), draw_view(data, crop)
    mask = block(top + height + 4, left + width + 7, box)

    image = image_to_model((mask * 255).astype(np.uint8), view, square(SIDE), resampler)[0]
    cells, n_small = masks_to_grid(mask[None], view, square(SIDE), resampler)
    expected = boxes_to_model(np.array([box]), view, square(SIDE))[0]

    # A row or column through the block passes half its height exactly at the block's edge.
    bright_columns, bright_rows = (image.max(axis=axis) > image.max() / 2 for axis in (0, 1))
    np.testing.assert_array_equal(extent(bright_rows[:, None] & bright_columns), expected)
    np.testing.assert_array_equal(extent(cells[0] == 1), expected)
    assert cells.sum() == (expected[2] - expected[0]) * (expected[3] - expected[1])
    assert n_small == 0


@both
@settings(deadline=None)
@given(st.data())
def test_masks_turn_as_numpy_flips_and_turns(resampler: Resampler, data: st.DataObject) -> None:
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=36, max_size=36))).reshape(6, 6)
    view = draw_view(data, (0, 0, 6, 6))
    expected = mask[:, ::-1] if view.flip_x else mask
    expected = expected[::-1] if view.flip_y else expected
    expected = np.kron(np.rot90(expected, view.quarter_turns), np.ones((2, 2)))
    np.testing.assert_array_equal(masks_to_grid(mask[None], view, square(12), resampler)[0][0], expected)


@both
@settings(deadline=None)
@given(st.data())
def test_any_sizes_keep_masks_within_a_cell_of_the_box(resampler: Resampler, data: st.DataObject) -> None:
    height, width, grid = (data.draw(st.integers(1, 70)) for _ in range(3))
    crop = draw_box(data, (0, 0, width, height))
    box, view = draw_box(data, crop), draw_view(data, crop)
    cells, _ = masks_to_grid(block(height, width, box)[None], view, square(grid), resampler)
    found = extent(cells[0] == 1)
    assert np.abs(found - boxes_to_model(np.array([box]), view, square(grid))[0]).max() <= 1


@settings(deadline=None)
@given(st.data())
def test_boxes_round_trip_through_the_model_frame(data: st.DataObject) -> None:
    crop = draw_box(data, (0, 0, 4000, 3000))
    view = draw_view(data, crop)
    boxes = np.array([draw_box(data, crop) for _ in range(3)])
    there = boxes_to_model(boxes, view, square(1024))
    assert there.dtype == np.float32
    assert (there[:, 2:] > there[:, :2]).all()
    assert there.min() >= 0
    assert there.max() <= 1024
    np.testing.assert_allclose(boxes_to_native(there, view, square(1024)), boxes, atol=2e-3)


def test_boxes_are_not_rounded() -> None:
    view = View((10, 0, 310, 200))
    np.testing.assert_allclose(
        boxes_to_model(np.array([[11, 1, 12, 2]]), view, square(1024)),
        [[1024 / 300, 5.12, 2048 / 300, 10.24]],
        rtol=1e-6,
    )


def test_one_quarter_turn_is_counter_clockwise() -> None:
    right_edge = np.zeros((4, 4))
    right_edge[:, 3] = 1
    turned = orient(right_edge, View((0, 0, 4, 4), quarter_turns=1))
    np.testing.assert_array_equal(turned[0], np.ones(4))
    assert turned.sum() == 4


@both
@pytest.mark.parametrize("shape", [(5, 9), (5, 9, 3)])
def test_images_are_three_float32_planes_and_not_rounded(resampler: Resampler, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    image = image_to_model(pixels, View.whole(5, 9), square(64), resampler)
    assert image.shape == (3, 64, 64)
    assert image.dtype == np.float32
    assert image.min() >= 0
    assert image.max() <= 255
    assert (image != image.round()).any()
    assert np.array_equal(image[0], image[1]) == (len(shape) == 2)


@both
@pytest.mark.filterwarnings("error")
def test_read_only_pixels_are_read_without_a_warning(resampler: Resampler) -> None:
    pixels = np.zeros((8, 8), dtype=np.uint8)
    pixels.flags.writeable = False
    image = image_to_model(pixels, View.whole(8, 8), square(8), resampler)
    assert not np.shares_memory(image, pixels)
    as_tensor(image)[0] += 1
    assert not pixels.any()


@both
def test_an_image_of_the_model_size_is_left_as_it_is(resampler: Resampler) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image = image_to_model(pixels, View.whole(32, 32), square(32), resampler)
    np.testing.assert_array_equal(image.transpose(1, 2, 0), pixels.astype(np.float32))


@both
def test_shrinking_averages_rather_than_picks(resampler: Resampler) -> None:
    stripes = np.tile(np.array([0, 255, 255, 0], dtype=np.uint8), (64, 16))
    image = image_to_model(stripes, View.whole(64, 64), square(16), resampler)
    assert np.abs(image[..., 1:-1] - 127.5).max() < 1e-3


@both
def test_pixels_outside_the_crop_do_not_bleed_in(resampler: Resampler) -> None:
    pixels = np.full((20, 20), 255, dtype=np.uint8)
    pixels[5:15, 5:15] = 40
    for size in (4, 16, 64):
        shown = image_to_model(pixels, View((5, 5, 15, 15)), square(size), resampler)
        np.testing.assert_allclose(shown, np.full((3, size, size), 40), rtol=1e-6)


@both
@settings(deadline=None)
@given(st.data())
def test_grid_cells_are_those_covered_by_half(resampler: Resampler, data: st.DataObject) -> None:
    height, width, grid = (data.draw(st.integers(1, 9)) for _ in range(3))
    bits = data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    mask = np.array(bits).reshape(height, width)
    # Every pixel cut into grid x grid parts: cells are then whole blocks of height x width parts.
    parts = np.kron(mask, np.ones((grid, grid), dtype=np.int64))
    twice = 2 * parts.reshape(grid, height, grid, width).sum(axis=(1, 3))
    cells, n_small = masks_to_grid(mask[None], View.whole(height, width), square(grid), resampler)
    if (twice >= height * width).any() or not mask.any():
        np.testing.assert_array_equal(cells[0], twice >= height * width)
        assert n_small == 0
    else:
        assert n_small == 1
        assert cells.any()
        assert not (cells[0].astype(bool) & (twice == 0)).any()


@both
def test_an_object_smaller_than_the_grid_is_kept_in_its_place_and_counted(resampler: Resampler) -> None:
    masks = np.zeros((3, 100, 100), dtype=np.bool_)
    masks[0, 99, 0] = True
    masks[1, 40:80, 40:80] = True
    view = View.whole(100, 100)
    cells, n_small = masks_to_grid(masks, view, square(8), resampler)
    assert n_small == 1
    assert np.argwhere(cells[0]).tolist() == [[7, 0]]
    assert cells[2].sum() == 0
    flipped, _ = masks_to_grid(masks, View(view.crop, flip_x=True), square(8), resampler)
    assert np.argwhere(flipped[0]).tolist() == [[7, 7]]


@both
def test_an_object_outside_the_crop_is_not_counted(resampler: Resampler) -> None:
    cells, n_small = masks_to_grid(block(50, 50, (0, 0, 9, 9))[None], View((20, 20, 50, 50)), square(8), resampler)
    assert n_small == 0
    assert cells.sum() == 0


@both
def test_no_masks_at_all(resampler: Resampler) -> None:
    cells, n_small = masks_to_grid(np.zeros((0, 7, 9), dtype=np.bool_), View.whole(7, 9), square(4), resampler)
    assert cells.shape == (0, 4, 4)
    assert n_small == 0


@both
@settings(deadline=None)
@given(st.data())
def test_masks_come_back_from_logits_of_a_finer_grid(resampler: Resampler, data: st.DataObject) -> None:
    height, width = data.draw(st.sampled_from([3, 4, 6, 8])), data.draw(st.sampled_from([2, 3, 12, 24]))
    bits = data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    masks = np.array(bits).reshape(1, height, width)
    cells, _ = masks_to_grid(masks, View.whole(height, width), square(24), resampler)
    back = logits_to_native(cells * 20 - 10, height, width, square(24), resampler) > 0
    np.testing.assert_array_equal(back, masks)


PADDED_96 = Geometry(96, 12, 48, PADDED)


@both
@settings(max_examples=200, deadline=None)
@given(st.data())
def test_in_the_padded_frame_a_block_lands_in_one_place(resampler: Resampler, data: st.DataObject) -> None:
    width, height = data.draw(st.sampled_from([(12, 24), (24, 12), (48, 32), (8, 48), (24, 24)]))
    left, top = data.draw(st.integers(0, 9)), 5
    crop = (left, top, left + width, top + height)
    box, view = draw_box(data, crop), draw_view(data, crop)
    mask = block(top + height + 4, left + width + 7, box)
    geometry = Geometry(96, 12, 96, PADDED)

    image = image_to_model((mask * 255).astype(np.uint8), view, geometry, resampler)[0]
    cells, n_small = masks_to_grid(mask[None], view, geometry, resampler)
    expected = boxes_to_model(np.array([box]), view, geometry)[0]

    bright_columns, bright_rows = (image.max(axis=axis) > image.max() / 2 for axis in (0, 1))
    np.testing.assert_array_equal(extent(bright_rows[:, None] & bright_columns), expected)
    np.testing.assert_array_equal(extent(cells[0] == 1), expected)
    longest = 96 / max(width, height)
    found = expected[2] - expected[0], expected[3] - expected[1]
    native = box[2] - box[0], box[3] - box[1]
    assert sorted(found) == sorted(side * longest for side in native)
    assert n_small == 0


@settings(deadline=None)
@given(st.data())
def test_boxes_round_trip_through_the_padded_frame_and_stay_in_the_slice(data: st.DataObject) -> None:
    crop = draw_box(data, (0, 0, 4000, 3000))
    boxes = np.array([draw_box(data, crop) for _ in range(3)])
    geometry = Geometry(1024, 64, 256, PADDED)
    upright = boxes_to_model(boxes, View(crop), geometry)
    height, width = geometry.content(crop[3] - crop[1], crop[2] - crop[0])
    assert (upright >= 0).all()
    assert (upright <= np.array([width, height] * 2)).all()
    view = draw_view(data, crop)
    there = boxes_to_model(boxes, view, geometry)
    np.testing.assert_allclose(boxes_to_native(there, view, geometry), boxes, atol=2e-3)


@both
def test_padding_is_zero_and_lies_right_and_below(resampler: Resampler) -> None:
    pixels = np.full((30, 60), 200, dtype=np.uint8)
    image = image_to_model(pixels, View.whole(30, 60), PADDED_96, resampler)
    np.testing.assert_allclose(image[:, :48], np.full((3, 48, 96), 200), rtol=1e-6)
    assert not image[:, 48:].any()
    tall = image_to_model(pixels.T, View.whole(60, 30), PADDED_96, resampler)
    assert not tall[:, :, 48:].any()
    assert tall[:, :, :48].all()


@both
@pytest.mark.parametrize(("height", "width"), [(30, 60), (60, 30), (12, 96), (48, 48), (97, 13)])
def test_masks_come_back_from_logits_of_the_padded_frame(resampler: Resampler, height: int, width: int) -> None:
    box = (width // 4, height // 4, width - width // 4, height - height // 4)
    mask = block(height, width, box)
    cells, _ = masks_to_grid(mask[None], View.whole(height, width), PADDED_96, resampler)
    back = logits_to_native(cells * 20 - 10, height, width, PADDED_96, resampler)[0] > 0
    # The grid is half as fine as the model's pixels.
    tolerance = max(1.0, 2 * max(height, width) / 96)
    assert np.abs(np.array(extent(back)) - box).max() <= tolerance
    assert (back & mask).sum() / (back | mask).sum() > 0.7


@both
@pytest.mark.parametrize("frame", [SQUARE, PADDED])
def test_an_object_smaller_than_the_grid_is_kept_in_every_frame(resampler: Resampler, frame: str) -> None:
    mask = np.zeros((200, 100), dtype=np.bool_)
    mask[150, 20] = True
    geometry = Geometry(64, 4, 16, frame)
    cells, n_small = masks_to_grid(mask[None], View.whole(200, 100), geometry, resampler)
    assert n_small == 1
    (x_min, y_min, _, _) = boxes_to_model(np.array([[20, 150, 21, 151]]), View.whole(200, 100), geometry)[0] / 4
    assert np.argwhere(cells[0]).tolist() == [[int(y_min), int(x_min)]]
