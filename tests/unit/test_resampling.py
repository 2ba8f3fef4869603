"""Resampling: numpy's agrees with torch's on every size, and needs nothing but numpy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

from medsam_core.base.geometry import AREA, Geometry
from medsam_core.imaging.preprocessing import image_to_model, masks_to_grid
from medsam_core.imaging.resampling import NumpyResampler, area_resized, triangle_weights
from medsam_core.imaging.torch_resampling import TorchResampler, as_tensor
from medsam_core.imaging.views import View

NUMPY, TORCH = NumpyResampler(), TorchResampler()

lengths = st.one_of(st.integers(1, 12), st.integers(1, 400))


@settings(deadline=None, max_examples=150)
@given(lengths, lengths, lengths, lengths, st.sampled_from([(), (3,)]))
@example(1, 1, 1, 1, ())
@example(17, 5, 8, 1, (3,))
@example(17, 5, 1, 8, ())
@example(1, 300, 64, 64, (3,))
@example(300, 1, 7, 7, ())
@example(64, 64, 64, 64, (3,))
@example(1500, 30, 1024, 20, ())
@example(4000, 2, 1024, 2, ())
@example(3, 3900, 3, 4000, ())
def test_images_agree_with_torch_at_any_size(
    height: int, width: int, to_height: int, to_width: int, channels: tuple[int, ...]
) -> None:
    image = np.random.default_rng(height).integers(0, 256, (height, width, *channels), dtype=np.uint8)
    found, wanted = (one.resize_image(image, to_height, to_width) for one in (NUMPY, TORCH))
    assert found.shape == wanted.shape == (3 if channels else 1, to_height, to_width)
    assert found.dtype == wanted.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=0, atol=255e-5)


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 80), lengths, lengths)
@example(1, 5, 7)
@example(256, 3000, 40)
@example(64, 64, 64)
def test_logits_agree_with_torch_at_any_size(side: int, height: int, width: int) -> None:
    logits = 10 * np.random.default_rng(side).standard_normal((2, side, side + 3), dtype=np.float32)
    found, wanted = NUMPY.resize_logits(logits, height, width), TORCH.resize_logits(logits, height, width)
    assert found.shape == wanted.shape == (2, height, width)
    assert found.dtype == wanted.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(logits).max())


@settings(deadline=None, max_examples=100)
@given(lengths, lengths, st.integers(1, 70), st.floats(0.001, 1))
def test_masks_agree_with_torch_at_any_size(height: int, width: int, grid: int, share: float) -> None:
    masks = np.random.default_rng(width).random((2, height, width)) < share
    rows, columns = (np.random.default_rng(grid).random((grid, length), dtype=np.float32) for length in (height, width))
    rows, columns = rows / height, columns / width
    found, wanted = NUMPY.cover(masks, rows, columns), TORCH.cover(masks, rows, columns)
    assert found.dtype == wanted.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    view, geometry = View.whole(height, width), Geometry(grid, 1, grid)
    (cells, n_small), (expected, n_expected) = (masks_to_grid(masks, view, geometry, one) for one in (NUMPY, TORCH))
    np.testing.assert_array_equal(cells, expected)
    assert n_small == n_expected


@settings(deadline=None)
@given(lengths, lengths, st.integers(1, 70))
def test_a_lost_object_takes_the_cells_of_adaptive_max_pooling(height: int, width: int, grid: int) -> None:
    rng = np.random.default_rng(grid)
    mask = np.zeros((1, height, width), dtype=np.bool_)
    mask[0, rng.integers(height), rng.integers(width)] = True
    cells, n_small = masks_to_grid(mask, View.whole(height, width), Geometry(grid, 1, grid), NUMPY)
    if n_small:
        pooled = F.adaptive_max_pool2d(torch.from_numpy(mask.astype(np.float32)), grid)
        np.testing.assert_array_equal(cells, pooled)
    else:
        assert cells.any()


@pytest.mark.parametrize("shape", [(50, 70), (50, 70, 3)])
def test_torch_gives_training_the_bytes_of_a_plain_interpolation(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    planes = torch.from_numpy(image[5:45, 9:60].astype(np.float32)).reshape(40, 51, -1).permute(2, 0, 1)
    wanted = F.interpolate(planes[None], size=(64, 64), mode="bilinear", align_corners=False, antialias=True)[0]
    wanted = torch.rot90(wanted.flip(-1), 3, dims=(-2, -1)).expand(3, -1, -1)
    shown = image_to_model(image, View((9, 5, 60, 45), flip_x=True, quarter_turns=3), Geometry(64, 4, 16), TORCH)
    np.testing.assert_array_equal(shown, wanted)


def test_an_infinite_logit_reaches_no_further_than_its_neighbours() -> None:
    logits = np.ones((1, 8, 8), dtype=np.float32)
    logits[0, 0, 0] = np.inf
    for resampler in (NUMPY, TORCH):
        native = resampler.resize_logits(logits, 16, 16)[0]
        assert native[0, 0] == np.inf
        np.testing.assert_array_equal(native[:, 4:], np.ones((16, 12)))
        np.testing.assert_array_equal(native[4:], np.ones((12, 16)))


def test_weights_that_are_kept_cannot_be_spoilt() -> None:
    with pytest.raises(ValueError, match="read-only"):
        triangle_weights(9, 4)[0, 0] = 5


@pytest.mark.filterwarnings("error")
def test_a_tensor_shares_what_may_be_written_and_copies_what_may_not() -> None:
    array = np.zeros(3, dtype=np.float32)
    as_tensor(array)[0] = 1
    assert array[0] == 1
    array.flags.writeable = False
    as_tensor(array)[1] = 1
    assert array[1] == 0


small = st.integers(1, 24)


@settings(deadline=None, max_examples=100)
@given(small, small, small, small, st.sampled_from([(), (3,)]))
@example(16, 16, 4, 4, (3,))
@example(3, 2, 24, 3, ())
def test_an_area_mean_is_that_of_pixels_cut_into_equal_pieces(
    height: int, width: int, to_height: int, to_width: int, channels: tuple[int, ...]
) -> None:
    image = np.random.default_rng(width).integers(0, 256, (height, width, *channels), dtype=np.uint8)
    pieces = np.atleast_3d(image).astype(np.float64).repeat(to_height, axis=0).repeat(to_width, axis=1)
    wanted = pieces.reshape(to_height, height, to_width, width, -1).mean(axis=(1, 3)).transpose(2, 0, 1)
    found = area_resized(image, to_height, to_width)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=0, atol=255e-5)


def test_a_model_is_shown_images_as_it_says() -> None:
    image = np.random.default_rng(0).integers(0, 256, (96, 80, 3), dtype=np.uint8)
    view = View.whole(96, 80)
    by_area = image_to_model(image, view, Geometry(64, 4, 16, resampling=AREA), TORCH)
    np.testing.assert_array_equal(by_area, area_resized(image, 64, 64))
    blurred = image_to_model(image, view, Geometry(64, 4, 16), TORCH)
    # The triangle reaches twice as far, so it leaves less of the contrast.
    assert blurred.std() < 0.9 * by_area.std()
