"""The look of CT, MR and PET. What belongs here: bodies and painters of volumes. Not here: objects' outlines.

A flat case is a volume of one slice. Legend: D H W voxels; grey levels 0..255.
"""

import numpy as np

from medsam_core.synthetic.scenes import Scene
from medsam_core.synthetic.shapes import BoolArray
from medsam_core.synthetic.textures import Image, blur, grid, mix, noise, pieces, round_body


def trunk(rng: np.random.Generator, shape: tuple[int, int]) -> BoolArray:
    """Return (H, W) bool: a cross-section of a trunk."""
    return round_body(rng, shape, 0.93, 0.05)


def head(rng: np.random.Generator, shape: tuple[int, int]) -> BoolArray:
    """Return (H, W) bool: a cross-section of a head."""
    return round_body(rng, shape, 0.94, 0.02)


def _signed(rng: np.random.Generator, low: float, high: float, below: float) -> float:
    """Draw a contrast from `low` to `high`, negative with probability `below`."""
    return float(rng.uniform(low, high) * (-1 if rng.random() < below else 1))


def paint_ct(rng: np.random.Generator, scene: Scene) -> Image:
    """Windowed soft tissue: constant grey per organ, a rim of fat, a spine, fine noise; (D, H, W)."""
    shape = scene.body.shape
    tissue = float(rng.uniform(100, 125))
    body = blur(scene.body, 0.6)
    image = mix(np.zeros(shape, np.float32), body, tissue - 35)
    image = mix(image, np.clip(blur(scene.body, 3) * 5 - 3.6, 0, 1), tissue)
    image += 4 * noise(rng, shape, 7) * body
    rows, columns = grid((shape[1], shape[2]))
    image = mix(image, blur(np.hypot((rows - 0.66) / 0.13, columns / 0.1) < 1, 0.8), 242)
    for weight in pieces(scene.distractors, 0.6):
        image = mix(image, weight, tissue + _signed(rng, 14, 22, 0.5))
    for weight in pieces(scene.objects, 0.6):
        image = mix(image, weight, tissue + _signed(rng, 42, 80, 0.4))
    return image + 6 * noise(rng, shape, 0.5)


def paint_mr(rng: np.random.Generator, scene: Scene) -> Image:
    """Textured tissue in a bright rim under a smooth bias field, Rician noise; (D, H, W)."""
    shape = scene.body.shape
    tissue = float(rng.uniform(80, 100))
    image = np.zeros(shape, np.float32)
    image = mix(image, blur(scene.body, 0.7), 170)
    image = mix(image, np.clip(blur(scene.body, 2) * 4 - 2.7, 0, 1), tissue + 6 * noise(rng, shape, 5))
    for weight in pieces(scene.distractors, 0.7):
        image = mix(image, weight, tissue * rng.uniform(1.12, 1.25))
    for weight in pieces(scene.objects, 0.7):
        factor = rng.uniform(1.6, 2.0) if rng.random() < 0.65 else rng.uniform(0.25, 0.45)
        image = mix(image, weight, tissue * factor + 3 * noise(rng, shape, 3))
    image *= np.exp(0.16 * noise(rng, shape, max(shape[1:]) / 4))
    return np.asarray(np.hypot(image + 5 * noise(rng, shape), 5 * noise(rng, shape)))


def paint_pet(rng: np.random.Generator, scene: Scene) -> Image:
    """Faint uptake of the body, hot lesions and blurred organs, noise that grows with the counts; (D, H, W)."""
    shape = scene.body.shape
    image = mix(np.full(shape, 4, np.float32), blur(scene.body, 1.5), float(rng.uniform(22, 38)))
    image *= 1 + 0.12 * noise(rng, shape, 5)
    for weight in pieces(scene.distractors, 2.2):
        image = mix(image, weight, float(rng.uniform(55, 75)))
    for weight in pieces(scene.objects, 1.1):
        image = mix(image, weight, float(rng.uniform(135, 235)))
    return np.asarray(image + 0.7 * np.sqrt(np.maximum(image, 0)) * noise(rng, shape, 0.7), dtype=np.float32)
