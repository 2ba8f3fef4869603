"""Outlines that no ellipse fits. What belongs here: families of outlines and their rasters. Not here: where they go.

An outline is a level function of normalised coordinates, negative inside. A family draws one at random; the solid made
of it keeps one outline and lets it shrink, drift and turn smoothly along z. Legend: D H W voxels of a raster.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import ndimage

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
Level = Callable[[FloatArray, FloatArray], FloatArray]
"""Maps x and y (any equal shape) to a level, negative inside the outline."""

_TARGET_MEAN, _TARGET_SPREAD = 0.69, 0.06
"""DSC of the ellipse that outlines are chosen for. Outlines miss it upwards more often than downwards, so the mean
becomes 0.73 to 0.77, as wanted: on real cases it is 0.73 to 0.76."""
_TARGET_RANGE = (0.58, 0.84)
_CANDIDATES = 8
_PREVIEW = 40
"""Side of the raster in normalised coordinates on which candidates are compared."""
_REACH = 1.7
"""Half the side of that raster; no family reaches further out."""
_ROUNDING = 0.035
"""Scale on which corners are rounded, as a share of the box's longer side."""


def ellipse_score(mask: BoolArray) -> float:
    """Return the DSC of a mask with the ellipse (3D: ellipsoid) inscribed in its tight box.

    Args:
        mask: Boolean array of any number of dimensions with at least one true element. The box is half-open and an
            element is in the ellipse if its centre is.

    Raises:
        ValueError: If the mask is empty.
    """
    cropped = crop_to_content(mask)
    lines = np.ix_(*[((2 * np.arange(size) + 1) / size - 1) ** 2 for size in cropped.shape])
    ellipse = np.asarray(sum(lines)) <= 1
    return float(2 * np.count_nonzero(ellipse & cropped) / (np.count_nonzero(ellipse) + np.count_nonzero(cropped)))


def crop_to_content(mask: BoolArray) -> BoolArray:
    """Return the part of a boolean array inside its tight box.

    Raises:
        ValueError: If the mask is empty.
    """
    found = ndimage.find_objects(mask.astype(np.uint8))
    if not found:
        raise ValueError(f"mask: expected at least one true element in shape {mask.shape}, found none")
    return mask[found[0]]


def _wavy(rng: np.random.Generator) -> Level:
    """Star-convex Fourier outline with concavities."""
    orders = np.arange(2, 6)
    heights = rng.uniform(0.5, 1.0, orders.size) * np.array([0.26, 0.26, 0.16, 0.1])
    phases = rng.uniform(0, 2 * np.pi, orders.size)

    def level(x: FloatArray, y: FloatArray) -> FloatArray:
        angle = np.arctan2(y, x)
        reach = 1 + sum(h * np.cos(k * angle + p) for h, k, p in zip(heights, orders, phases, strict=True))
        return np.asarray(np.hypot(x, y) - np.maximum(reach, 0.25))

    return level


def _crescent(rng: np.random.Generator) -> Level:
    """Disc with a disc bitten out of its side."""
    radius, distance = rng.uniform(0.5, 0.85), rng.uniform(0.65, 0.95)
    angle = rng.uniform(0, 2 * np.pi)
    centre_x, centre_y = distance * np.cos(angle), distance * np.sin(angle)

    def level(x: FloatArray, y: FloatArray) -> FloatArray:
        bite = radius - np.hypot(x - centre_x, y - centre_y)
        return np.asarray(np.maximum(np.hypot(x, y) - 1, bite))

    return level


def _lobed(rng: np.random.Generator) -> Level:
    """Two to four discs that meet in the middle."""
    count = int(rng.integers(2, 5))
    angles = rng.uniform(0, 2 * np.pi) + (np.arange(count) + rng.uniform(-0.25, 0.25, count)) * 2 * np.pi / count
    distances, radii = rng.uniform(0.5, 0.8, count), rng.uniform(0.36, 0.55, count)
    core = rng.uniform(0.35, 0.5)

    def level(x: FloatArray, y: FloatArray) -> FloatArray:
        discs = [np.hypot(x, y) - core]
        for angle, distance, radius in zip(angles, distances, radii, strict=True):
            discs.append(np.hypot(x - distance * np.cos(angle), y - distance * np.sin(angle)) - radius)
        return np.asarray(np.minimum.reduce(discs))

    return level


def _notched(rng: np.random.Generator) -> Level:
    """Disc without a wedge whose apex lies near its centre."""
    angle, apex, half_angle = rng.uniform(0, 2 * np.pi), rng.uniform(-0.3, 0.2), rng.uniform(0.35, 0.9)

    def level(x: FloatArray, y: FloatArray) -> FloatArray:
        along = x * np.cos(angle) + y * np.sin(angle) - apex
        across = np.abs(y * np.cos(angle) - x * np.sin(angle))
        wedge = along * np.sin(half_angle) - across * np.cos(half_angle)
        return np.asarray(np.maximum(np.hypot(x, y) - 1, wedge))

    return level


def _slanted(rng: np.random.Generator) -> Level:
    """Elongated body lying across its box, slightly bent."""
    angle = rng.uniform(0.45, 1.1) * rng.choice([-1, 1])
    half_width, bend = rng.uniform(0.33, 0.6), rng.uniform(-0.4, 0.4)

    def level(x: FloatArray, y: FloatArray) -> FloatArray:
        along = x * np.cos(angle) + y * np.sin(angle)
        across = y * np.cos(angle) - x * np.sin(angle) + bend * (along**2 - 0.4)
        return np.asarray(np.hypot(along / 1.2, across / half_width) - 1)

    return level


def _triangle(rng: np.random.Generator) -> Level:
    """Triangle with rounded corners."""
    normals = rng.uniform(0, 2 * np.pi) + np.arange(3) * 2 * np.pi / 3 + rng.uniform(-0.25, 0.25, 3)
    distances = rng.uniform(0.4, 0.6, 3)

    def level(x: FloatArray, y: FloatArray) -> FloatArray:
        sides = [x * np.cos(n) + y * np.sin(n) - d for n, d in zip(normals, distances, strict=True)]
        return np.asarray(np.maximum(np.maximum.reduce(sides), np.hypot(x, y) - 1))

    return level


def _spiculated(rng: np.random.Generator) -> Level:
    """Core with four to six broad spikes of uneven length."""
    count = int(rng.integers(4, 7))
    angles = rng.uniform(0, 2 * np.pi) + (np.arange(count) + rng.uniform(-0.2, 0.2, count)) * 2 * np.pi / count
    lengths, core = rng.uniform(0.4, 1.0, count), rng.uniform(0.45, 0.65)
    sharpness = rng.uniform(8, 16)

    def level(x: FloatArray, y: FloatArray) -> FloatArray:
        angle = np.arctan2(y, x)
        reach = np.full(np.shape(x), core)
        for spike, length in zip(angles, lengths, strict=True):
            reach = reach + length * np.exp(sharpness * (np.cos(angle - spike) - 1))
        return np.asarray(np.hypot(x, y) - reach)

    return level


FAMILIES: dict[str, Callable[[np.random.Generator], Level]] = {
    "wavy": _wavy,
    "crescent": _crescent,
    "lobed": _lobed,
    "notched": _notched,
    "slanted": _slanted,
    "triangle": _triangle,
    "spiculated": _spiculated,
}


def _solid(rng: np.random.Generator, outline: Level, depth: int) -> Callable[[FloatArray, FloatArray], BoolArray]:
    """Return the function that rasters an outline's solid at columns x and rows y, (D, H, W); flat if D is 1."""
    if depth == 1:
        return lambda x, y: outline(*np.broadcast_arrays(x[None, None, :], y[None, :, None])) < 0
    t = ((2 * np.arange(depth) + 1) / depth - 1)[:, None, None]
    scale = np.maximum(1 - np.abs(t) ** rng.uniform(1.8, 2.6), 0) ** rng.uniform(0.35, 0.55)
    drift_x, drift_y = rng.uniform(-0.3, 0.3, 2)
    turn = rng.uniform(-0.4, 0.4) * t

    def raster(x: FloatArray, y: FloatArray) -> BoolArray:
        u, v = (x[None, None, :] - drift_x * t) / scale, (y[None, :, None] - drift_y * t) / scale
        return outline(u * np.cos(turn) + v * np.sin(turn), v * np.cos(turn) - u * np.sin(turn)) < 0

    return raster


def _round_corners(mask: BoolArray) -> BoolArray:
    """Smooth the outline in every slice; a raster without a border is taken to lie on background."""
    sigma = _ROUNDING * max(mask.shape[1:])
    soft = ndimage.gaussian_filter(mask.astype(np.float32), (0, sigma, sigma), mode="constant")
    return np.asarray(soft > 0.5)


def _largest_piece(mask: BoolArray) -> BoolArray:
    pieces, count = ndimage.label(mask)
    if count < 2:
        return mask
    return np.asarray(pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:]))


def draw_shape(rng: np.random.Generator, family: str, size: tuple[int, int, int]) -> BoolArray:
    """Draw one connected shape of a family whose ellipse score is near a drawn target.

    Several outlines of the family are drawn, and the one whose score is nearest to the target is kept. So all families
    have the same mean score, and both scores and outlines still vary.

    Args:
        rng: Source of randomness.
        family: A key of `FAMILIES`.
        size: (D, H, W) of the tight box asked for; D = 1 gives a flat shape.

    Returns:
        (D', H', W') boolean, tightly cropped; at most the size asked for and seldom smaller.
    """
    target = float(np.clip(rng.normal(_TARGET_MEAN, _TARGET_SPREAD), *_TARGET_RANGE))
    line = np.linspace(-_REACH, _REACH, _PREVIEW)
    solids = [_solid(rng, FAMILIES[family](rng), size[0]) for _ in range(_CANDIDATES)]
    previews = [solid(line, line) for solid in solids]
    best = int(np.argmin([abs(ellipse_score(preview) - target) for preview in previews]))
    fitted = _fit(solids[best], previews[best], size[1:])
    return crop_to_content(_largest_piece(_round_corners(fitted)))


def _fit(solid: Callable[[FloatArray, FloatArray], BoolArray], preview: BoolArray, size: tuple[int, int]) -> BoolArray:
    """Raster a solid so that its tight box in the plane, known from its preview, gets the size asked for."""
    step = 2 * _REACH / (_PREVIEW - 1)
    lines: list[FloatArray] = []
    for axis, count in zip((1, 2), size, strict=True):
        filled = np.flatnonzero(preview.any(axis=tuple({0, 1, 2} - {axis})))
        low, high = filled[0] * step - _REACH - step / 2, filled[-1] * step - _REACH + step / 2
        lines.append(low + (np.arange(count) + 0.5) * (high - low) / count)
    return solid(lines[1], lines[0])
