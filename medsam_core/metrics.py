"""Overlap of two binary masks: DSC and NSD. What belongs here: formulas on one pair of masks.

Not here: labels, cases or modalities (`scoring`), means and intervals (`reporting`).

NSD (normalised surface Dice, Nikolov et al. 2018, arXiv 1809.04430) is the share of both surfaces that lies within a
tolerance of the other, with DeepMind's discretisation: surface elements sit between voxel centres, weigh what
`surface_areas` says, and are as far apart as their cells. What lies outside the array counts as background.

All masks are boolean arrays (anything else is read as nonzero) and spacings are in array axis order.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medsam_core.surface_areas import contour_lengths, surfel_areas

Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]

TOLERANCE = 2.0
"""The challenge's NSD tolerance: millimetres in a volume, pixels in an image (`compute_metrics.py`)."""

_TRANSFORM_COST = 30
"""Look-ups of single voxels that take as long as an exact distance transform takes per voxel (measured: 20 to 60)."""


def dsc(gt: npt.NDArray[Any], pred: npt.NDArray[Any]) -> float:
    """Return the Dice similarity coefficient 2 |A and B| / (|A| + |B|), NaN where both masks are empty.

    Raises:
        ValueError: The shapes differ.
    """
    gt, pred = _as_masks(gt, pred)
    total = np.count_nonzero(gt) + np.count_nonzero(pred)
    if total == 0:
        return float("nan")
    return float(2 * np.count_nonzero(gt & pred) / total)


def official_nsd(
    gt: npt.NDArray[Any],
    pred: npt.NDArray[Any],
    spacing_zyx: tuple[float, float, float] | None,
    tolerance: float = TOLERANCE,
) -> float:
    """Return the NSD as the challenge computes it.

    A volume is measured with its spacing. An image is measured as a volume one voxel thick with spacing 1, where every
    foreground pixel is surface: not the contour NSD, which is `surface_dice` of the two-dimensional masks.

    Args:
        gt: (H, W) or (D, H, W).
        pred: Of the same shape.
        spacing_zyx: Voxel spacing in mm for volumes; not looked at for images.
        tolerance: In the unit of the spacing, inclusive.

    Raises:
        ValueError: The shapes differ or do not fit the spacing.
    """
    if gt.ndim == 2:
        return surface_dice(gt[np.newaxis], pred[np.newaxis], (1.0, 1.0, 1.0), tolerance)
    if spacing_zyx is None:
        raise ValueError("expected a spacing (z, y, x) for a volume, found None; read it from the case")
    return surface_dice(gt, pred, spacing_zyx, tolerance)


def surface_dice(
    gt: npt.NDArray[Any],
    pred: npt.NDArray[Any],
    spacing: tuple[float, ...],
    tolerance: float = TOLERANCE,
) -> float:
    """Return the NSD of two masks: of surfaces in three dimensions, of contours in two.

    Args:
        gt: (H, W) or (D, H, W).
        pred: Of the same shape.
        spacing: Distance of neighbouring centres along each array axis, > 0.
        tolerance: In the unit of the spacing, inclusive, >= 0.

    Returns:
        A share from 0 to 1; 0 where one mask is empty, NaN where both are.

    Raises:
        ValueError: The shapes differ, the spacing has another number of axes or is not positive, or the tolerance is
            negative.
    """
    if not tolerance >= 0:
        raise ValueError(f"expected a tolerance of at least 0, found {tolerance}")
    gt, pred = _as_masks(gt, pred)
    spacing = _checked_spacing(spacing, gt.ndim)
    region = _bounding_box(gt | pred)
    if region is None:
        return float("nan")
    sizes = surfel_areas(spacing) if len(spacing) == 3 else contour_lengths((spacing[0], spacing[1]))
    codes_gt, codes_pred = _cell_codes(gt[region]), _cell_codes(pred[region])
    surface_gt, surface_pred = _is_surface(codes_gt), _is_surface(codes_pred)
    total = overlap = 0.0
    for codes, own, other in ((codes_gt, surface_gt, surface_pred), (codes_pred, surface_pred, surface_gt)):
        elements = np.flatnonzero(own)
        weights = sizes[codes.ravel()[elements]]
        total += float(weights.sum())
        overlap += float(weights[_within(elements, other, spacing, tolerance)].sum())
    return overlap / total


def _as_masks(gt: npt.NDArray[Any], pred: npt.NDArray[Any]) -> tuple[Mask, Mask]:
    if gt.shape != pred.shape:
        raise ValueError(f"expected two masks of one shape, found {gt.shape} and {pred.shape}")
    return gt.astype(bool, copy=False), pred.astype(bool, copy=False)


def _checked_spacing(spacing: tuple[float, ...], ndim: int) -> tuple[Any, ...]:
    """Return the spacing as a tuple of plain floats, of which there are two or three."""
    values = tuple(float(value) for value in spacing)
    if ndim not in {2, 3} or len(values) != ndim or not all(0 < value < np.inf for value in values):
        raise ValueError(
            f"expected one positive spacing per axis of two- or three-dimensional masks, found {values} for {ndim} axes"
        )
    return values


def _bounding_box(mask: Mask) -> tuple[slice, ...] | None:
    """Return the smallest box that holds the mask, or None where it is empty."""
    box = []
    for axis in range(mask.ndim):
        filled = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if not len(filled):
            return None
        box.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return tuple(box)


def _cell_codes(mask: Mask) -> npt.NDArray[np.uint8]:
    """Return the codes of the cells around and between a mask's voxels: one more along each axis than voxels."""
    codes = np.pad(mask, 1).view(np.uint8)
    for step, axis in enumerate(reversed(range(mask.ndim))):
        moved = np.moveaxis(codes, axis, 0)
        codes = np.moveaxis(moved[:-1] | (moved[1:] << np.uint8(1 << step)), 0, axis)
    return np.ascontiguousarray(codes)


def _is_surface(codes: npt.NDArray[np.uint8]) -> Mask:
    """Return where a cell is neither all outside (0) nor all inside, the largest code of 4 or 8 corners."""
    inside = np.uint8(2 ** (2**codes.ndim) - 1)
    surface: Mask = (codes != 0) & (codes != inside)
    return surface


def _within(elements: Indices, other: Mask, spacing: tuple[float, ...], tolerance: float) -> Mask:
    """Return which elements lie within the tolerance of the other surface.

    Looking at the cells around every element, nearest first, settles most elements in a few steps. Those still open
    after as many look-ups as a distance transform is worth are settled by one.

    Args:
        elements: (N,) flat indices into the grid of cells.
        other: Where the other surface is, over the same grid.
        spacing: Distance of neighbouring cells along each axis.
        tolerance: In the same unit, inclusive.

    Returns:
        (N,) bool.
    """
    if not other.any():
        return np.zeros(len(elements), dtype=bool)
    near = np.ones(len(elements), dtype=bool)
    reach = [int(min(tolerance / step + 1, size - 1)) for step, size in zip(spacing, other.shape, strict=True)]
    far, settled = np.arange(len(elements)), False
    if np.prod(2.0 * np.array(reach) + 1) <= other.size:
        offsets = _offsets_within(reach, spacing, tolerance)
        far, settled = _look_around(elements, other, offsets, budget=_TRANSFORM_COST * other.size)
    if settled:
        near[far] = False
    else:
        distances = ndimage.distance_transform_edt(~other, sampling=spacing)
        near[far] = distances.ravel()[elements[far]] <= tolerance
    return near


def _offsets_within(reach: list[int], spacing: tuple[float, ...], tolerance: float) -> Indices:
    """Return the (M, axes) steps, of up to `reach` cells an axis, no longer than the tolerance, nearest first."""
    axes = np.meshgrid(*(np.arange(-steps, steps + 1) for steps in reach), indexing="ij")
    offsets = np.stack([axis.ravel() for axis in axes], axis=1)
    # In the order of operations of scipy's transform, so that both agree where a distance equals the tolerance.
    lengths = np.sqrt(np.add.reduce(np.square(offsets * np.array(spacing)).T, axis=0))
    near = np.flatnonzero(lengths <= tolerance)
    return offsets[near[np.argsort(lengths[near], kind="stable")]]


def _look_around(elements: Indices, other: Mask, offsets: Indices, budget: int) -> tuple[Indices, bool]:
    """Return the positions of the elements that met the other surface at no offset, and whether all were tried."""
    margin = np.abs(offsets).max(axis=0)
    padded = np.pad(other, [(steps, steps) for steps in margin])
    strides = np.array(padded.strides)
    places = (np.stack(np.unravel_index(elements, other.shape), axis=1) + margin) @ strides
    pending = np.arange(len(elements))
    flat = padded.ravel()
    for shift in offsets @ strides:
        if not len(pending):
            break
        budget -= len(pending)
        if budget < 0:
            return pending, False
        missed = ~flat[places + shift]
        pending, places = pending[missed], places[missed]
    return pending, True
