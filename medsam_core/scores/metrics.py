"""Overlap of two binary masks: DSC and NSD. What belongs here: formulas on one pair of masks.

Not here: which of them are reported (`metric_table`), labels, cases or modalities (`scoring`), means (`reporting`).

NSD (normalised surface Dice, Nikolov et al. 2018, arXiv 1809.04430) is the share of both surfaces that lies within a
tolerance of the other, with DeepMind's discretisation: a surface element lies in each cell between voxel centres that
the surface crosses. Its weight is its area (`surface_areas`), and the distance of two elements is that of their cells.
What lies outside the array counts as background.

All masks are boolean arrays (anything else is read as nonzero) and spacings are in array axis order.
"""

import numpy as np
import numpy.typing as npt

from medsam_core.scores.surface_areas import contour_lengths, surfel_areas
from medsam_core.scores.surface_distances import Mask, within

AnyMask = npt.NDArray[np.generic]
"""A mask of any type: what is not zero is inside."""

TOLERANCE = 2.0
"""The challenge's NSD tolerance: millimetres in a volume, pixels in an image (`compute_metrics.py`)."""


def dsc(gt: AnyMask, pred: AnyMask) -> float:
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
    gt: AnyMask,
    pred: AnyMask,
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
    gt: AnyMask,
    pred: AnyMask,
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
    sizes = (
        surfel_areas((spacing[0], spacing[1], spacing[2]))
        if len(spacing) == 3
        else contour_lengths((spacing[0], spacing[1]))
    )
    codes_gt, codes_pred = _cell_codes(gt[region]), _cell_codes(pred[region])
    surface_gt, surface_pred = _is_surface(codes_gt), _is_surface(codes_pred)
    total = overlap = 0.0
    for codes, own, other in ((codes_gt, surface_gt, surface_pred), (codes_pred, surface_pred, surface_gt)):
        elements = np.flatnonzero(own)
        weights = sizes[codes.ravel()[elements]]
        total += float(weights.sum())
        overlap += float(weights[within(elements, other, spacing, tolerance)].sum())
    return overlap / total


def _as_masks(gt: AnyMask, pred: AnyMask) -> tuple[Mask, Mask]:
    if gt.shape != pred.shape:
        raise ValueError(f"expected two masks of one shape, found {gt.shape} and {pred.shape}")
    return gt.astype(bool, copy=False), pred.astype(bool, copy=False)


def _checked_spacing(spacing: tuple[float, ...], ndim: int) -> tuple[float, ...]:
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
