"""Pixel statistics against numpy, with every modality counting alike."""

import numpy as np
import numpy.typing as npt
import pytest

from medsam_core.imaging.pixel_statistics import balanced_statistics, histogram

Slices = list[tuple[str, npt.NDArray[np.uint8]]]


def noise(seed: int, *shape: int, low: int = 0, high: int = 256) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(low, high, shape, dtype=np.uint8)


def pooled(images: list[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float64]:
    """Return all pixels, (n, 3), in [0, 1] units."""
    colour = [image if image.ndim == 3 else np.stack([image] * 3, axis=-1) for image in images]
    return np.concatenate([image.reshape(-1, 3) for image in colour]) / 255


def test_one_modality_is_numpys_mean_and_deviation_of_all_pixels() -> None:
    images = [noise(1, 7, 9, 3), noise(2, 30, 4, 3, low=100), noise(3, 5, 5, high=40)]
    mean, std = balanced_statistics(("CT", image) for image in images)
    pixels = pooled(images)
    np.testing.assert_allclose(mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(axis=0), rtol=1e-10)
    assert len(set(mean)) == 3, "channels differ, so that a mix-up of them would show"


def test_modalities_count_alike_however_many_slices_each_has() -> None:
    bright, dark = [noise(seed, 8, 8, low=200) for seed in range(9)], [noise(20, 3, 3, high=50)]
    slices: Slices = [("MR", image) for image in bright] + [("US", image) for image in dark]
    mean, std = balanced_statistics(slices)
    first, second = pooled(bright), pooled(dark)
    np.testing.assert_allclose(mean, (first.mean(0) + second.mean(0)) / 2, rtol=1e-12)
    square = ((first**2).mean(0) + (second**2).mean(0)) / 2
    np.testing.assert_allclose(std, np.sqrt(square - mean**2), rtol=1e-10)
    unbalanced = pooled(bright + dark).mean(0)
    assert np.abs(mean - unbalanced).min() > 0.2


def test_the_deviation_is_pooled_not_averaged_over_slices() -> None:
    flat = [np.full((4, 4), value, np.uint8) for value in (0, 255)]
    mean, std = balanced_statistics(("OCT", image) for image in flat)
    np.testing.assert_allclose(mean, 0.5)
    np.testing.assert_allclose(std, 0.5)


def test_the_order_of_slices_does_not_change_a_bit() -> None:
    slices: Slices = [(name, noise(seed, 6, 5, 3)) for seed, name in enumerate(["CT", "US", "MR"] * 4)]
    expected = balanced_statistics(slices)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(slices))
        found = balanced_statistics(slices[index] for index in order)
        np.testing.assert_array_equal(found, expected)


def test_a_grey_image_is_three_equal_channels() -> None:
    grey = noise(4, 6, 7)
    np.testing.assert_array_equal(histogram(grey), histogram(np.stack([grey] * 3, axis=-1)))


def test_a_histogram_counts_each_value_of_each_channel() -> None:
    image = noise(5, 11, 13, 3)
    counts = histogram(image)
    assert (counts.shape, counts.dtype) == ((3, 256), np.int64)
    for channel in range(3):
        values, times = np.unique(image[..., channel], return_counts=True)
        np.testing.assert_array_equal(counts[channel, values], times)
        assert counts[channel].sum() == 11 * 13


def test_no_slices_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one training slice"):
        balanced_statistics([])
