"""Where objects lie. What belongs here: bodies, and placing shapes in them. Not here: outlines, or how a scene looks.

Legend: D H W voxels of the case; D is 1 for a flat case.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medsam_core.synthetic.shapes import BoolArray, draw_shape

_SMALLEST_SIDE = 8
_TRIES_PER_SIZE = 24
_SHRINK = 0.85
_SMALL_SHARE = 0.08
"""Share of objects drawn well below the modality's usual size."""


@dataclass(frozen=True)
class Scene:
    """What a case shows before it has an appearance.

    Attributes:
        body: (D, H, W) bool; the anatomy or field of view that holds the objects.
        objects: (D, H, W) int64; 0, or the number from 1 of the labelled object there. Objects touch but never overlap.
        distractors: (D, H, W) int64; the same for unlabelled shapes, which no object overlaps.
    """

    body: BoolArray
    objects: npt.NDArray[np.int64]
    distractors: npt.NDArray[np.int64]

    @property
    def n_objects(self) -> int:
        """Number of labelled objects."""
        return int(self.objects.max(initial=0))


@dataclass(frozen=True)
class Contents:
    """What a modality's scenes hold.

    Attributes:
        families: Outline families and their weights.
        objects: Fewest and most labelled objects.
        extent: Smallest and largest side of an object's box, as a share of the image's shorter side.
        distractors: Fewest and most unlabelled shapes.
        flatness: Width over height by which boxes are stretched on average; 1 for none.
    """

    families: Mapping[str, float]
    objects: tuple[int, int]
    extent: tuple[float, float]
    distractors: tuple[int, int] = (0, 2)
    flatness: float = 1.0


def place(rng: np.random.Generator, contents: Contents, body: BoolArray, allowed: BoolArray) -> Scene:
    """Fill a body with objects and distractors.

    Args:
        rng: Source of randomness.
        contents: What to place.
        body: (D, H, W) bool.
        allowed: (D, H, W) bool; where shapes may lie.

    Returns:
        A scene with at least one object. Shapes for which no room is found shrink, and in the end are left out.

    Raises:
        ValueError: If not even one object finds room.
    """
    objects, distractors = np.zeros(body.shape, np.int64), np.zeros(body.shape, np.int64)
    free = allowed.copy()
    for layer, limits in ((objects, contents.objects), (distractors, contents.distractors)):
        for _ in range(rng.integers(limits[0], limits[1] + 1)):
            window = _place_one(rng, contents, free, layer)
            if window is not None:
                free[window] &= layer[window] == 0
    if not objects.any():
        raise ValueError(f"scene: expected room for an object in {body.shape}, found {int(allowed.sum())} free voxels")
    return Scene(body, objects, distractors)


def _place_one(
    rng: np.random.Generator, contents: Contents, free: BoolArray, layer: npt.NDArray[np.int64]
) -> tuple[slice, ...] | None:
    """Write one shape into a layer where there is room; return the window it lies in, or None."""
    size = _draw_size(rng, contents, free.shape)
    family = str(rng.choice(list(contents.families), p=_shares(contents.families)))
    while min(size[1:]) >= _SMALLEST_SIDE:
        shape = draw_shape(rng, family, size)
        for _ in range(_TRIES_PER_SIZE):
            window = _draw_window(rng, free.shape, shape.shape)
            if free[window][shape].all():
                layer[window][shape] = layer.max() + 1
                return window
        size = (size[0], int(size[1] * _SHRINK), int(size[2] * _SHRINK))
    return None


def _shares(families: Mapping[str, float]) -> npt.NDArray[np.float64]:
    weights = np.array(list(families.values()), dtype=np.float64)
    return np.asarray(weights / weights.sum())


def _draw_size(rng: np.random.Generator, contents: Contents, case: tuple[int, ...]) -> tuple[int, int, int]:
    """Return (D, H, W) of a box; in a volume D is at most two less than the case's."""
    depth = 1 if case[0] == 1 else int(rng.integers(max(4, case[0] // 2 - 1), case[0] - 1))
    low, high = contents.extent
    side = rng.uniform(low, high) * min(case[1:])
    if rng.random() < _SMALL_SHARE:
        side *= 0.55
    stretch = contents.flatness * np.exp(rng.uniform(-0.3, 0.3))
    height, width = side / np.sqrt(stretch), side * np.sqrt(stretch)
    return depth, max(round(height), _SMALLEST_SIDE), max(round(width), _SMALLEST_SIDE)


def _draw_window(rng: np.random.Generator, case: tuple[int, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Return a window of a shape's size inside the case; slice 0 of a volume stays empty."""
    first = (int(case[0] > 1), 0, 0)
    starts = [int(rng.integers(low, t - p + 1)) for low, t, p in zip(first, case, shape, strict=True)]
    return tuple(slice(start, start + part) for start, part in zip(starts, shape, strict=True))


def inner(body: BoolArray, margin: int) -> BoolArray:
    """Return the part of a body at least `margin` pixels from its outline and from the image's edge, slice by slice.

    Args:
        body: (D, H, W) bool, equal in all slices.
        margin: Pixels.
    """
    plane = ndimage.minimum_filter(body[0], size=2 * margin + 1, mode="constant", cval=0)
    return np.broadcast_to(plane, body.shape).copy()
