"""Metrics of mask pairs: geometry of the surface, agreement with brute force, symmetries, edge cases."""

from itertools import permutations, product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsam_core.scores import surface_distances
from medsam_core.scores.metrics import dsc, official_nsd, surface_dice
from medsam_core.scores.surface_areas import contour_lengths, surfel_areas

Mask = npt.NDArray[np.bool_]
SPACINGS = (0.25, 0.83, 1.0, 2.5, 5.0)
"""With the tolerances below, distances that tie do so exactly: rounding plays no part in the comparison."""


@st.composite
def problems(draw: st.DrawFn) -> tuple[Mask, Mask, tuple[float, ...], float]:
    shape = draw(st.lists(st.integers(1, 6), min_size=2, max_size=3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    gt, pred = (rng.random(shape) < draw(st.sampled_from([0.02, 0.3, 0.7, 1.0])) for _ in range(2))
    spacing = tuple(draw(st.sampled_from(SPACINGS)) for _ in shape)
    return gt, pred, spacing, draw(st.sampled_from([0.0, 1.0, 2.0, 2.5]))


def brute_force(gt: Mask, pred: Mask, spacing: tuple[float, ...], tolerance: float) -> float:
    """Return NSD by visiting every cell and every pair of surface elements."""
    axes = gt.ndim
    sizes = surfel_areas(spacing) if axes == 3 else contour_lengths(spacing)  # type: ignore[arg-type]
    surfaces = []
    for mask in (gt, pred):
        padded = np.pad(mask, 1)
        surface = []
        for cell in product(*(range(size - 1) for size in padded.shape)):
            corners = [padded[tuple(map(sum, zip(cell, step, strict=True)))] for step in product((0, 1), repeat=axes)]
            code = sum(int(corner) << bit for bit, corner in enumerate(corners))
            if 0 < code < 2 ** len(corners) - 1:
                surface.append([*cell, sizes[code]])
        surfaces.append(np.array(surface).reshape(-1, axes + 1))
    if not any(len(surface) for surface in surfaces):
        return float("nan")
    steps = surfaces[0][:, None, :axes] - surfaces[1][None, :, :axes]
    near = np.linalg.norm(steps * spacing, axis=2) <= tolerance
    overlap = sum(surfaces[side][near.any(axis=1 - side), axes].sum() for side in (0, 1))
    return float(overlap / sum(surface[:, axes].sum() for surface in surfaces))


@settings(max_examples=60, deadline=None)
@given(problems())
def test_nsd_is_what_brute_force_finds(problem: tuple[Mask, Mask, tuple[float, ...], float]) -> None:
    gt, pred, spacing, tolerance = problem
    expected = brute_force(gt, pred, spacing, tolerance)
    assert surface_dice(gt, pred, spacing, tolerance) == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("cost", [0, 2, 10**6], ids=["transform alone", "both", "look-up alone"])
def test_looking_around_and_the_distance_transform_agree(cost: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    gt, pred = rng.random((2, 12, 20, 20)) < 0.01
    pred[:, 10:] = False
    spacing = (2.0, 0.5, 0.4)
    expected = surface_dice(gt, pred, spacing)
    monkeypatch.setattr(surface_distances, "_TRANSFORM_COST", cost)
    assert surface_dice(gt, pred, spacing) == expected
    assert 0 < expected < 1


@pytest.mark.parametrize("axes", list(permutations(range(3))))
def test_turning_both_masks_with_their_spacing_changes_nothing(axes: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(1)
    gt, pred = rng.random((2, 6, 7, 8)) < 0.3
    spacing = (3.0, 1.0, 0.7)
    turned = surface_dice(gt.transpose(axes)[::-1], pred.transpose(axes)[::-1], tuple(spacing[axis] for axis in axes))
    assert turned == pytest.approx(surface_dice(gt, pred, spacing), abs=1e-12)
    assert turned == pytest.approx(
        surface_dice(pred.transpose(axes), gt.transpose(axes), tuple(spacing[axis] for axis in axes)), abs=1e-12
    )


def test_spacing_is_in_array_order() -> None:
    gt, pred = np.zeros((2, 24, 24, 24), dtype=bool)
    gt[8:16, 8:16, 8:16] = True
    pred[9:17, 8:16, 8:16] = True
    assert surface_dice(gt, pred, (3.0, 1.0, 1.0)) < 1
    assert surface_dice(gt, pred, (1.0, 1.0, 3.0)) == 1


def test_nsd_grows_with_the_tolerance_and_reaches_one() -> None:
    rng = np.random.default_rng(2)
    gt, pred = rng.random((2, 8, 8, 8)) < 0.05
    found = [surface_dice(gt, pred, (1.0, 1.0, 1.0), tolerance) for tolerance in (0, 1, 2, 3, 20)]
    assert found == sorted(found)
    assert found[0] < found[2]
    assert found[-1] == 1


def test_a_distance_equal_to_the_tolerance_counts() -> None:
    gt, pred = np.zeros((2, 1, 9), dtype=bool)
    gt[0, 2], pred[0, 4] = True, True
    assert surface_dice(gt, pred, (1.0, 1.0), 2.0) == 1
    assert surface_dice(gt, pred, (1.0, 1.0), np.nextafter(2.0, 0)) < 1


@pytest.mark.parametrize(
    ("shape", "gt", "pred", "expected"),
    [
        (32, np.s_[8:16, 8:16], np.s_[8:16, 11:19], 0.6297503756456382),
        (64, np.s_[8:24, 8:24], np.s_[8:24, 12:28], 0.5318327243180699),
        (64, np.s_[10:50, 10:50], np.s_[15:45, 15:45], 0.0),
        (32, np.s_[0:32, 0:32], np.s_[0:32, 0:29], 0.7600946125944145),
    ],
)
def test_contour_nsd_is_that_of_surface_distance_in_two_dimensions(
    shape: int, gt: Any, pred: Any, expected: float
) -> None:
    masks = np.zeros((2, shape, shape), dtype=bool)
    masks[0][gt] = masks[1][pred] = True
    assert surface_dice(masks[0], masks[1], (1.0, 1.0)) == pytest.approx(expected, abs=1e-9)


def test_official_nsd_of_an_image_counts_every_pixel_as_surface() -> None:
    gt, pred = np.zeros((2, 64, 64), dtype=bool)
    gt[10:50, 10:50] = pred[15:45, 15:45] = True
    assert official_nsd(gt, pred, None) == pytest.approx(0.8360078215373942, abs=1e-9)


@pytest.mark.parametrize("shape", [(5, 5), (4, 5, 5)])
def test_empty_masks(shape: tuple[int, ...]) -> None:
    nothing, something = np.zeros(shape, dtype=bool), np.ones(shape, dtype=bool)
    spacing = (1.0,) * len(shape)
    assert np.isnan(dsc(nothing, nothing))
    assert np.isnan(surface_dice(nothing, nothing, spacing))
    for gt, pred in ((nothing, something), (something, nothing)):
        assert dsc(gt, pred) == 0
        assert surface_dice(gt, pred, spacing) == 0
    assert dsc(something, something) == 1
    assert surface_dice(something, something, spacing) == 1


def test_dsc_by_hand_and_for_masks_of_numbers() -> None:
    gt, pred = np.array([[0, 3, 3, 0]]), np.array([[0, 0, 7, 7]])
    assert dsc(gt, pred) == 0.5


def test_wrong_arguments_are_refused() -> None:
    mask = np.ones((3, 3), dtype=bool)
    with pytest.raises(ValueError, match="one shape"):
        dsc(mask, mask[:2])
    with pytest.raises(ValueError, match="one positive spacing per axis"):
        surface_dice(mask, mask, (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="one positive spacing per axis"):
        surface_dice(mask, mask, (1.0, 0.0))
    with pytest.raises(ValueError, match="tolerance of at least 0"):
        surface_dice(mask, mask, (1.0, 1.0), -1.0)
    with pytest.raises(ValueError, match="expected a spacing"):
        official_nsd(mask[None], mask[None], None)


def test_areas_of_the_cells_that_are_known_by_hand() -> None:
    areas = surfel_areas((1.0, 1.0, 1.0))
    corner, edge = np.sqrt(3) / 8, np.sqrt(0.5)
    assert areas[[0, 255]].tolist() == [0, 0]
    np.testing.assert_allclose(areas[[0b1, 0b10000000]], corner)
    np.testing.assert_allclose(areas[0b11], edge)
    np.testing.assert_allclose(areas[[0b1111, 0b110011]], 1)
    np.testing.assert_allclose(areas[0b10000001], 2 * corner)
    np.testing.assert_allclose(areas[0b01101001], 4 * corner)
    np.testing.assert_allclose(areas[0b00010111], 6 * corner)
    np.testing.assert_allclose(areas[0b111], 0.5 + 3 * corner)


def test_areas_of_a_face_scale_with_the_two_spacings_along_it() -> None:
    areas = surfel_areas((5.0, 2.0, 3.0))
    np.testing.assert_allclose(areas[[0b00001111, 0b00110011, 0b01010101]], [6, 15, 10])


def test_a_code_and_its_complement_have_the_same_area() -> None:
    areas = surfel_areas((3.0, 0.7, 1.3))
    np.testing.assert_allclose(areas, areas[::-1], rtol=1e-13)


@pytest.mark.parametrize("axes", list(permutations(range(3))))
@pytest.mark.parametrize("mirrored", list(product((False, True), repeat=3)))
def test_areas_turn_and_mirror_with_the_cell(axes: tuple[int, ...], mirrored: tuple[bool, ...]) -> None:
    spacing = np.array([3.0, 0.7, 1.3])
    corners = np.arange(8).reshape(2, 2, 2)
    turned = np.flip(corners.transpose(axes), tuple(axis for axis in range(3) if mirrored[axis])).ravel()
    codes = np.arange(256)
    moved = sum(((codes >> int(corner)) & 1) << bit for bit, corner in enumerate(turned))
    first, second, third = spacing[list(axes)]
    np.testing.assert_allclose(surfel_areas((first, second, third))[moved], surfel_areas(tuple(spacing)), rtol=1e-12)


def test_areas_cannot_be_overwritten_through_the_cache() -> None:
    with pytest.raises(ValueError, match="read-only"):
        surfel_areas((1.0, 1.0, 1.0))[3] = 0


def test_contour_lengths_by_hand() -> None:
    lengths = contour_lengths((3.0, 4.0))
    assert lengths[[0b0000, 0b0001, 0b0011, 0b0101, 0b0110, 0b0111, 0b1111]].tolist() == [0, 2.5, 4, 3, 5, 2.5, 0]
