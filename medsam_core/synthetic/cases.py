"""One case, made from modality, number and seed. What belongs here: the contents of each modality's cases.

Not here: files, or how a case looks.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import numpy as np
import numpy.typing as npt

from medsam_core.synthetic import colour, planar, volumes
from medsam_core.synthetic.scenes import Contents, Scene, inner, place
from medsam_core.synthetic.shapes import BoolArray
from medsam_core.synthetic.textures import Image, finish

_VOLUME_EVERY = 4
"""Every fourth case of a volumetric modality is a volume, unless `make_case` is told which it shall be."""
_SPARSE_IDS_SHARE = 0.15
"""Share of cases whose label ids have gaps, as in the challenge's files."""
_MANY_IDS_EVERY = 9
"""Each ninth Microscopy case has ids above 255, as crowded fields of cells have, and so 16-bit labels."""
_GREY_AS_RGB_SHARE = 0.3
"""Share of flat grey cases stored with three equal channels, as many of the challenge's are."""


class Case(TypedDict):
    """The arrays of a case's npz file.

    Attributes:
        imgs: uint8, (H, W), (H, W, 3) or, for a volume, (D, H, W).
        gts: uint8 or uint16 label ids of the same (H, W) or (D, H, W); 0 is background.
        spacing: (3,) float64, millimetres along z, y, x; volumes only.
    """

    imgs: npt.NDArray[np.uint8]
    gts: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
    spacing: NotRequired[npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Recipe:
    """How a modality's cases are made.

    Attributes:
        contents: Objects and distractors.
        body: Draws the (H, W) body in which they lie.
        paint: Gives a scene its appearance.
        side: Smallest and largest side of a flat image in pixels.
        volumetric: Whether there are volumes too.
        colour: Whether images have colours. Others are grey, even where they are stored as RGB.
        aspect: Width over height of images on average.
        margin: Pixels that shapes keep from the body's outline.
    """

    contents: Contents
    body: Callable[[np.random.Generator, tuple[int, int]], BoolArray]
    paint: Callable[[np.random.Generator, Scene], Image]
    side: tuple[int, int] = (96, 176)
    volumetric: bool = False
    colour: bool = False
    aspect: float = 1.0
    margin: int = 4


_RECIPES: dict[str, Recipe] = {
    "CT": Recipe(
        Contents({"wavy": 2, "slanted": 1, "crescent": 1, "lobed": 1, "triangle": 1}, (1, 4), (0.2, 0.42), (0, 3)),
        volumes.trunk,
        volumes.paint_ct,
        volumetric=True,
        margin=7,
    ),
    "Dermoscopy": Recipe(
        Contents({"wavy": 3, "lobed": 2, "notched": 1, "triangle": 1}, (1, 2), (0.35, 0.6), (0, 4)),
        planar.whole,
        colour.paint_dermoscopy,
        colour=True,
        margin=6,
    ),
    "Endoscopy": Recipe(
        Contents({"lobed": 2, "wavy": 2, "notched": 1, "slanted": 1}, (1, 2), (0.25, 0.5), (0, 3)),
        colour.scope,
        colour.paint_endoscopy,
        colour=True,
        margin=4,
    ),
    "Fundus": Recipe(
        Contents({"crescent": 2, "wavy": 2, "lobed": 1, "slanted": 1}, (1, 3), (0.18, 0.35), (0, 2)),
        colour.disc,
        colour.paint_fundus,
        colour=True,
    ),
    "MR": Recipe(
        Contents({"lobed": 2, "wavy": 2, "crescent": 1, "notched": 1}, (1, 3), (0.2, 0.42), (0, 2)),
        volumes.head,
        volumes.paint_mr,
        volumetric=True,
        margin=7,
    ),
    "Mammography": Recipe(
        Contents({"spiculated": 4, "wavy": 1, "lobed": 1}, (1, 3), (0.22, 0.42), (0, 3)),
        planar.breast,
        planar.paint_mammography,
        aspect=0.8,
    ),
    "Microscopy": Recipe(
        Contents({"slanted": 2, "lobed": 2, "wavy": 2, "crescent": 1, "triangle": 1}, (4, 12), (0.15, 0.26), (0, 5)),
        planar.whole,
        colour.paint_microscopy,
        side=(112, 176),
        colour=True,
        margin=1,
    ),
    "OCT": Recipe(
        Contents({"crescent": 1, "lobed": 1, "wavy": 2, "triangle": 1}, (1, 4), (0.24, 0.42), (0, 2), flatness=1.4),
        planar.retina,
        planar.paint_oct,
        side=(84, 140),
        aspect=1.4,
        margin=3,
    ),
    "PET": Recipe(
        Contents({"lobed": 1, "wavy": 2, "slanted": 1, "triangle": 1}, (1, 4), (0.16, 0.32), (0, 2)),
        volumes.trunk,
        volumes.paint_pet,
        side=(72, 104),
        volumetric=True,
        margin=6,
    ),
    "US": Recipe(
        Contents({"wavy": 2, "lobed": 2, "notched": 1, "slanted": 1}, (1, 2), (0.26, 0.48), (0, 2)),
        planar.sector,
        planar.paint_us,
    ),
    "XRay": Recipe(
        Contents({"triangle": 1, "slanted": 1, "crescent": 1, "wavy": 2}, (1, 4), (0.22, 0.44), (0, 3)),
        planar.whole,
        planar.paint_xray,
        margin=3,
    ),
}

MODALITIES: tuple[str, ...] = tuple(_RECIPES)
"""Modalities that can be made, in the order of the sample."""

VOLUMETRIC: frozenset[str] = frozenset(name for name, recipe in _RECIPES.items() if recipe.volumetric)
"""Modalities of which there are volumes as well as flat cases."""

_VOLUME_SIDES = (76, 116)
_VOLUME_SLICES = (10, 16)


def make_case(modality: str, index: int, seed: int, volumetric: bool | None = None) -> Case:
    """Make one case. The same arguments always give the same arrays.

    Args:
        modality: One of `MODALITIES`.
        index: Number of the case, from 0; flat cases and volumes are numbered apart.
        seed: Seed of the data set.
        volumetric: Whether to make a volume; None makes one of every fourth index where the modality has volumes.

    Returns:
        The arrays of the case's npz file, without boxes.

    Raises:
        ValueError: If the modality is unknown, the index negative, or a volume of a flat modality asked for.
    """
    if modality not in _RECIPES:
        raise ValueError(f"modality: expected one of {', '.join(MODALITIES)}, found {modality!r}")
    if index < 0:
        raise ValueError(f"index: expected at least 0, found {index}")
    if volumetric and modality not in VOLUMETRIC:
        raise ValueError(f"volumetric: expected False or None for {modality}, which has no volumes, found True")
    recipe = _RECIPES[modality]
    solid = recipe.volumetric and index % _VOLUME_EVERY == 0 if volumetric is None else volumetric
    rng = _generator(f"{seed}|{modality}|{index}|{solid}")
    shape = _draw_shape(rng, recipe, solid)
    body = np.broadcast_to(recipe.body(rng, shape[1:]), shape)
    scene = place(rng, recipe.contents, body, inner(body, recipe.margin))
    image, labels = finish(recipe.paint(rng, scene)), _number(rng, scene, modality, index)
    if solid:
        return Case(imgs=image, gts=labels, spacing=_draw_spacing(rng))
    return Case(imgs=_flatten(rng, recipe, image), gts=labels[0])


def _generator(address: str) -> np.random.Generator:
    """Return the generator of one case, seeded by SHA-256: Python's own `hash` differs between processes."""
    digest = hashlib.sha256(address.encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


def _draw_shape(rng: np.random.Generator, recipe: Recipe, solid: bool) -> tuple[int, int, int]:
    """Return (D, H, W), D = 1 for a flat case; never square."""
    sides = _VOLUME_SIDES if solid else recipe.side
    depth = int(rng.integers(_VOLUME_SLICES[0], _VOLUME_SLICES[1] + 1)) if solid else 1
    area, ratio = float(rng.integers(sides[0], sides[1] + 1)), recipe.aspect * np.exp(rng.uniform(-0.22, 0.22))
    height, width = (int(np.clip(area * factor, *sides)) for factor in (ratio**-0.5, ratio**0.5))
    return depth, height, width + (height == width)


def _draw_spacing(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return (3,) millimetres along z, y, x: thick slices of square pixels."""
    pixel = round(float(rng.uniform(0.8, 2.0)), 2)
    return np.array([round(float(rng.uniform(2.5, 5.0)), 2), pixel, pixel])


def _flatten(rng: np.random.Generator, recipe: Recipe, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the image of a flat case: (H, W, 3) in colour, else (H, W), or by chance three equal channels."""
    if recipe.colour:
        return image
    grey = image[0] if recipe.volumetric else image
    return np.repeat(grey[..., None], 3, axis=2) if rng.random() < _GREY_AS_RGB_SHARE else grey


def _number(
    rng: np.random.Generator, scene: Scene, modality: str, index: int
) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """Give a scene's objects their label ids: 1, 2, ... or with gaps; (D, H, W)."""
    count = scene.n_objects
    ids = np.arange(count + 1)
    if rng.random() < _SPARSE_IDS_SHARE:
        ids[1:] = np.sort(rng.choice(np.arange(2, count + 4), count, replace=False))
    if modality == "Microscopy" and index % _MANY_IDS_EVERY == _MANY_IDS_EVERY - 1:
        ids[1:] += 254
        return ids.astype(np.uint16)[scene.objects]
    return ids.astype(np.uint8)[scene.objects]
