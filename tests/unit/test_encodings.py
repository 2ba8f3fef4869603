"""Eight-bit embeddings: the bounds of their error hold for any values, for teachers' in half the bytes."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medsam_core.models.segmenter import Segmenter
from storage.answers.encodings import ENCODINGS, MAX_SHARE_OF_SQUARES, MAX_SHARE_OF_VARIANCE, Floats
from storage.base.errors import StorageError
from tests.golden_weights import golden_images
from tests.teachers import bytes_of, cache_of, golden_vit_b, shipped_stand_in, synthetic_images

CODEC = ENCODINGS["int8_per_channel"]

Stored = dict[str, npt.NDArray[Any]]


def shares(values: Floats, decoded: Floats) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return mean((a - b)^2) of each slot over mean(a^2), and over the mean variance within channels."""
    a, b = values.astype(np.float64), decoded.astype(np.float64)
    error = np.square(a - b).mean(axis=(1, 2, 3))
    tiny = np.finfo(np.float64).tiny
    return error / (np.square(a).mean(axis=(1, 2, 3)) + tiny), error / (a.var(axis=(2, 3)).mean(axis=1) + tiny)


def assert_within_bounds(values: Floats) -> Stored:
    """Assert that each slot keeps both bounds, or is stored exactly as half precision has it; return what is stored."""
    stored = CODEC.encode(values)
    decoded = CODEC.decode(stored)
    assert decoded.dtype == np.float32
    exact = np.isnan(stored["_scale"]).any(axis=1)
    np.testing.assert_array_equal(decoded[exact], values[exact].astype(np.float16).astype(np.float32))
    squares, variances = shares(values[~exact], decoded[~exact])
    assert (squares <= MAX_SHARE_OF_SQUARES * (1 + 1e-4)).all()
    assert (variances <= MAX_SHARE_OF_VARIANCE * (1 + 1e-4)).all()
    assert not stored["_exact"][~exact].any()
    return stored


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    spread=st.sampled_from([0.0, 1.0, 3.0]),
    offset=st.sampled_from([0.0, 0.3, 5.0, 200.0]),
    scale=st.sampled_from([1e-6, 1.0, 100.0]),
    tails=st.sampled_from([None, 3.0, 10.0]),
)
def test_any_slot_keeps_the_bounds_or_is_kept_exactly(
    seed: int, spread: float, offset: float, scale: float, tails: float | None
) -> None:
    rng = np.random.default_rng(seed)
    shape = (3, 8, 6, 6)
    noise = rng.standard_normal(shape) if tails is None else rng.standard_t(tails, shape)
    widths, means = np.exp(rng.normal(0, spread, shape[:2])), rng.normal(0, offset, shape[:2])
    values = scale * (noise * widths[..., None, None] + means[..., None, None])
    assert_within_bounds(np.clip(values, -60000, 60000).astype(np.float32))


def test_constants_zeros_and_single_spikes() -> None:
    values = np.zeros((5, 4, 8, 8), np.float32)
    values[1] = 7.25
    values[2, 1, 3, 3] = 1.0
    values[3, 2] = np.linspace(-1, 1, 64).reshape(8, 8)
    values[4, :, 0, 0] = 50000
    values[4, :, 1:] = np.random.default_rng(0).normal(0, 1, (4, 7, 8))
    stored = assert_within_bounds(values)
    np.testing.assert_array_equal(CODEC.decode(stored)[0], 0)


def test_a_slot_with_a_far_outlier_is_kept_as_float16_and_its_neighbours_are_not() -> None:
    """The outlier stretches the range of one channel, for which 254 steps are then too few."""
    values = np.random.default_rng(1).uniform(-1, 1, (3, 2, 30, 30)).astype(np.float32)
    values[1, 0, 0, 0] = 40
    stored = assert_within_bounds(values)
    assert np.isnan(stored["_scale"]).any(axis=1).tolist() == [False, True, False]


def test_channels_of_a_wide_range_take_finer_steps_from_the_others() -> None:
    """At the widest common step the one long channel alone would spend the slot's error, and more."""
    values = np.random.default_rng(2).uniform(-1, 1, (1, 8, 30, 30)).astype(np.float32)
    values[0, 0, 0, :2] = -3.5, 3.5
    stored = assert_within_bounds(values)
    assert not np.isnan(stored["_scale"]).any()
    assert (stored["_scale"][0, 1:] < 2.1 / 254).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, 65520.0])
def test_what_half_precision_cannot_hold_is_refused(value: float) -> None:
    values = np.zeros((1, 2, 2, 2), np.float32)
    values[0, 1, 1, 1] = value
    with pytest.raises(StorageError, match="expected finite values below 65520"):
        CODEC.encode(values)


def assert_read_back_in_half_the_bytes(folder: Path, values: Floats) -> None:
    cache = cache_of(folder, "embeddings", values, CODEC.name)
    np.testing.assert_array_equal(cache.read("embeddings", 0, len(values)), CODEC.decode(CODEC.encode(values)))
    assert bytes_of(folder) / len(values) <= 0.48 * values[0].size * 2


def embeddings(teacher: Segmenter, images: torch.Tensor) -> Floats:
    with torch.inference_mode():
        found: Floats = teacher.eval().encode(images).numpy()
    return found


def test_the_shipped_teachers_embeddings_keep_the_bounds_in_half_the_bytes(tmp_path: Path) -> None:
    values = embeddings(shipped_stand_in(), synthetic_images(tmp_path / "npz", 44, 128))
    assert len(values) >= 32
    stored = assert_within_bounds(values)
    assert not np.isnan(stored["_scale"]).any()
    assert_read_back_in_half_the_bytes(tmp_path / "cache", values)


@pytest.mark.slow
def test_vit_bs_embeddings_keep_the_bounds_in_half_the_bytes(tmp_path: Path) -> None:
    """The architecture of MedSAM with the golden weights, at 1024 pixels."""
    values = embeddings(golden_vit_b(), 255 * golden_images(1024))
    stored = assert_within_bounds(values)
    assert not np.isnan(stored["_scale"]).any()
    assert_read_back_in_half_the_bytes(tmp_path / "cache", values)
