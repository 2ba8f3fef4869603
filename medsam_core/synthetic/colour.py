"""The look of Dermoscopy, Endoscopy, Fundus and Microscopy. What belongs here: painters in colour. Not here: outlines.

All bodies are (H, W) bool, all images (H, W, 3) float32 in 0..255; a scene's arrays have one slice.
"""

import numpy as np
from scipy import ndimage

from medsam_core.synthetic.scenes import Scene
from medsam_core.synthetic.shapes import BoolArray
from medsam_core.synthetic.textures import Colour, Image, blur, curve, grid, line, noise, pieces, tint

_MUCOSA: Colour = (188, 98, 84)
_POLYPS: tuple[Colour, ...] = ((232, 168, 142), (128, 34, 44), (226, 190, 120))
_EYE_FINDINGS: tuple[Colour, ...] = ((246, 220, 140), (82, 18, 12), (238, 232, 205))
_STAINS: tuple[tuple[Colour, Colour], ...] = (
    ((232, 205, 222), (112, 62, 140)),
    ((14, 18, 22), (70, 195, 110)),
    ((14, 16, 26), (90, 120, 230)),
    ((205, 205, 198), (110, 112, 108)),
)
"""Background and cell: haematoxylin and eosin, two fluorescent dyes, unstained."""


def scope(rng: np.random.Generator, shape: tuple[int, int]) -> BoolArray:
    """Return an endoscope's field of view: the image with its corners cut off."""
    rows, columns = grid(shape)
    return np.asarray(np.abs(rows) + np.abs(columns) < rng.uniform(1.5, 1.7))


def disc(rng: np.random.Generator, shape: tuple[int, int]) -> BoolArray:
    """Return a fundus camera's field of view: a disc."""
    rows, columns = np.indices(shape) - (np.array(shape).reshape(2, 1, 1) - 1) / 2
    return np.asarray(np.hypot(rows, columns) < rng.uniform(0.47, 0.54) * max(min(shape), 0.85 * max(shape)))


def _pick(rng: np.random.Generator, colours: tuple[Colour, ...]) -> Colour:
    """Draw one of some colours, slightly varied."""
    chosen = np.array(colours[int(rng.integers(len(colours)))]) + rng.uniform(-8, 8, 3)
    return float(chosen[0]), float(chosen[1]), float(chosen[2])


def _plain(shape: tuple[int, int], colour: Colour) -> Image:
    return np.broadcast_to(np.asarray(colour, np.float32), (*shape, 3)).copy()


def paint_dermoscopy(rng: np.random.Generator, scene: Scene) -> Image:
    """Skin with a mottled dark lesion, freckles, hairs across it all, darker corners."""
    shape = (scene.body.shape[1], scene.body.shape[2])
    rows, columns = grid(shape)
    image = _plain(shape, _pick(rng, ((226, 180, 156), (214, 164, 140))))
    image += (5 * noise(rng, shape, 9) + 3 * noise(rng, shape, 0.6))[..., None]
    for weight in pieces(scene.distractors[0], 1.5):
        image = tint(image, 0.35 * weight, (168, 112, 88))
    for weight in pieces(scene.objects[0], 0.8):
        shade = 1 + 0.14 * noise(rng, shape, 4)
        lesion = np.asarray(_pick(rng, ((112, 70, 52), (88, 58, 52))), np.float32) * shade[..., None]
        image = tint(image, weight, lesion.astype(np.float32))
    for _ in range(int(rng.integers(3, 10))):
        image = tint(image, 0.75 * curve(rng, shape, rng.uniform(30, 90), 0.03, 1.1), (52, 38, 32))
    image *= 1 - 0.22 * np.clip(np.hypot(rows, columns) - 0.7, 0, 1)[..., None]
    return image


def paint_endoscopy(rng: np.random.Generator, scene: Scene) -> Image:
    """Folded mucosa lit from the scope, domed polyps, white specular lights."""
    body, shape = scene.body[0], (scene.body.shape[1], scene.body.shape[2])
    rows, columns = grid(shape)
    folds = 0.07 * np.sin(2.5 * noise(rng, shape, 14) + 3 * rows)
    light = 1.08 - 0.22 * (rows**2 + columns**2) + folds
    image = _plain(shape, _pick(rng, (_MUCOSA,))) + (4 * noise(rng, shape, 1.5))[..., None]
    for weight in pieces(scene.distractors[0], 2.5):
        image = tint(image, 0.5 * weight, (165, 78, 70))
    for number, weight in enumerate(pieces(scene.objects[0], 0.8), 1):
        image *= 1 - 0.22 * (blur(weight, 2.5) * (1 - weight))[..., None]
        dome = ndimage.distance_transform_edt(scene.objects[0] == number)
        relief = (0.92 + 0.12 * dome / dome.max()).astype(np.float32)
        image = tint(image, weight, np.asarray(_pick(rng, _POLYPS), np.float32) * relief[..., None])
    image *= light[..., None]
    spots = blur((rng.random(shape) > 0.9985).astype(np.float32), 1.0) * 7 * (noise(rng, shape, 10) > 0.3)
    image = tint(image, np.minimum(spots, 1).astype(np.float32), (252, 250, 246))
    return np.asarray(image * blur(body, 0.7)[..., None], dtype=np.float32)


def paint_fundus(rng: np.random.Generator, scene: Scene) -> Image:
    """Orange retina in a disc, vessels that leave one point, bright and dark findings."""
    body, shape = scene.body[0], (scene.body.shape[1], scene.body.shape[2])
    image = _plain(shape, _pick(rng, ((190, 96, 44), (172, 78, 40)))) + (7 * noise(rng, shape, 12))[..., None]
    start = (shape[0] * rng.uniform(0.4, 0.6), shape[1] * rng.choice([0.2, 0.8]))
    for heading in np.arange(7) * 0.9 + rng.uniform(0, 1):
        width = rng.uniform(1.0, 2.0)
        vessel = line(rng, shape, start, heading, rng.uniform(60, 150), 0.06, width)
        image = tint(image, 0.65 * vessel, (108, 28, 20))
    for weight in pieces(scene.distractors[0], 2.5):
        image = tint(image, 0.3 * weight, (225, 150, 80))
    for weight in pieces(scene.objects[0], 0.7):
        image = tint(image, weight, _pick(rng, _EYE_FINDINGS))
    rows, columns = grid(shape)
    image *= (1.05 - 0.2 * np.hypot(rows, columns))[..., None]
    image += 3 * noise(rng, (*shape, 3))
    return np.asarray(image * blur(body, 0.7)[..., None], dtype=np.float32)


def paint_microscopy(rng: np.random.Generator, scene: Scene) -> Image:
    """Many cells in one of four stains, each a little different, over faint debris."""
    shape = (scene.body.shape[1], scene.body.shape[2])
    background, cell = _STAINS[int(rng.integers(len(_STAINS)))]
    image = _plain(shape, background) * (1 + 0.05 * noise(rng, shape, 14))[..., None]
    middle = tuple(0.8 * b + 0.2 * c for b, c in zip(background, cell, strict=True))
    for weight in pieces(scene.distractors[0], 1.8):
        image = tint(image, weight, (middle[0], middle[1], middle[2]))
    for weight in pieces(scene.objects[0], 0.6):
        grain = (rng.uniform(0.9, 1.15) * (1 + 0.07 * noise(rng, shape, 2)))[..., None]
        image = tint(image, weight, np.asarray(cell, np.float32) * grain.astype(np.float32))
    return image + 4 * noise(rng, (*shape, 3))
