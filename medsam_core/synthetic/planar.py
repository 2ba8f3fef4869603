"""The look of US, XRay, OCT and Mammography. What belongs here: bodies and painters in grey. Not here: outlines.

All bodies are (H, W) bool, all images (H, W) float32 in 0..255; a scene's arrays have one slice.
"""

import numpy as np
from scipy import ndimage

from medsam_core.synthetic.scenes import Scene
from medsam_core.synthetic.shapes import BoolArray
from medsam_core.synthetic.textures import Image, blur, curve, grid, mix, noise, pieces, speckle


def sector(rng: np.random.Generator, shape: tuple[int, int]) -> BoolArray:
    """Return the field of view of a convex ultrasound probe at the top."""
    rows, columns = grid(shape)
    depth = rows + float(rng.uniform(1.8, 2.6))
    radius, angle = np.hypot(depth, columns), np.arctan2(columns, depth)
    return np.asarray((radius > depth.min() + 0.05) & (radius < depth.max()) & (np.abs(angle) < 0.42))


def whole(_rng: np.random.Generator, shape: tuple[int, int]) -> BoolArray:
    """Return a field of view that fills the image."""
    return np.ones(shape, dtype=bool)


def retina(rng: np.random.Generator, shape: tuple[int, int]) -> BoolArray:
    """Return the band between the inner surface of the retina and the pigment epithelium."""
    columns = np.linspace(-1, 1, shape[1])
    sag = rng.uniform(-0.06, 0.1) * columns**2 + rng.uniform(-0.05, 0.05) * columns
    ripple = 0.02 * np.sin(columns * rng.uniform(2, 5) + rng.uniform(0, 6))
    top = (rng.uniform(0.14, 0.2) + sag + ripple) * shape[0]
    thickness = rng.uniform(0.56, 0.64) * shape[0]
    rows = np.arange(shape[0])[:, None]
    return np.asarray((rows >= top) & (rows < top + thickness))


def breast(rng: np.random.Generator, shape: tuple[int, int]) -> BoolArray:
    """Return a breast that leans on the image's left or right edge."""
    rows, columns = grid(shape)
    from_wall = (1 + columns * rng.choice([-1, 1])) / 2
    return np.asarray(np.hypot(rows / 0.98, from_wall / rng.uniform(0.86, 0.96)) < 1)


def paint_us(rng: np.random.Generator, scene: Scene) -> Image:
    """Speckle in a sector, dark lesions brighter underneath, some bright ones."""
    body, shape = scene.body[0], scene.body.shape[1:]
    echo = rng.uniform(105, 135) * np.exp(0.14 * noise(rng, shape, 9))
    for weight in pieces(scene.distractors[0], 1.5):
        echo *= 1 - 0.25 * weight
    for weight in pieces(scene.objects[0], 0.7):
        dark = rng.random() < 0.8
        below = np.clip(np.cumsum(weight, axis=0) / 12, 0, 1) * (1 - weight)
        echo = mix(echo, blur(below, 2.0) * (0.25 if dark else 0), 190)
        echo = mix(echo, weight, float(rng.uniform(18, 32) if dark else rng.uniform(225, 245)))
    image = echo * speckle(rng, shape, 0.9) ** 0.42
    return np.asarray(image * blur(body, 0.5) + np.abs(2 * noise(rng, shape)), dtype=np.float32)


def paint_xray(rng: np.random.Generator, scene: Scene) -> Image:
    """Translucent shapes that add up: soft tissue, ribs, the objects."""
    shape = (scene.body.shape[1], scene.body.shape[2])
    rows, columns = grid(shape)
    slope = rng.uniform(-12, 12, 2)
    image = (75 + slope[0] * rows + slope[1] * columns + 9 * noise(rng, shape, 16)).astype(np.float32)
    spacing, tilt, phase = rng.uniform(7, 11), rng.uniform(-1.5, 1.5), rng.uniform(0, 6)
    image += 17 * np.clip(2 * np.sin(rows * spacing + tilt * columns + columns**2 + phase), 0, 1)
    for weight in pieces(scene.distractors[0], 1.5):
        image += float(rng.uniform(12, 20)) * weight
    for weight in pieces(scene.objects[0], 0.7):
        image += float(rng.uniform(50, 95)) * weight
    return np.asarray(image + 4 * noise(rng, shape, 0.4), dtype=np.float32)


def paint_oct(rng: np.random.Generator, scene: Scene) -> Image:
    """Layered bands of the retina with dark pockets of fluid and bright foci, above a fading choroid."""
    body, shape = scene.body[0], scene.body.shape[1:]
    top, thickness = body.argmax(axis=0), np.maximum(body.sum(axis=0), 1)
    rows = np.arange(shape[0])[:, None]
    depth = (rows - top) / thickness
    edges = np.array([0, 0.12, 0.3, 0.42, 0.62, 0.7, 0.92, 1.0])
    greys = np.array([18, 185, 140, 105, 150, 108, 135, 225, 95], dtype=np.float32)
    image = greys[np.searchsorted(edges, depth, side="right")] + rng.uniform(-10, 10)
    image = np.where(depth > 1, image * np.exp(-2.2 * (depth - 1)), image)
    image = blur(image, 0.8)
    for weight in pieces(scene.distractors[0], 1.0):
        image = mix(image, 0.35 * weight, 215)
    for weight in pieces(scene.objects[0], 0.6):
        image = mix(image, weight, float(rng.uniform(22, 48)))
    return np.asarray(image * speckle(rng, shape, 0.7) ** 0.24, dtype=np.float32)


def paint_mammography(rng: np.random.Generator, scene: Scene) -> Image:
    """Fibrous tissue under a fading skin line, dense masses, points of calcification."""
    body, shape = scene.body[0], (scene.body.shape[1], scene.body.shape[2])
    depth = np.minimum(ndimage.distance_transform_edt(body) / (0.3 * min(shape)), 1)
    image = np.asarray(30 + 45 * depth, dtype=np.float32) + 8 * noise(rng, shape, 5)
    for _ in range(int(rng.integers(14, 24))):
        image += 14 * curve(rng, shape, rng.uniform(20, 60), 0.08, 1.3)
    for weight in pieces(scene.distractors[0], 2.5):
        image += 18 * weight
    for weight in pieces(scene.objects[0], 0.7):
        image = mix(image, weight, float(rng.uniform(165, 215)) + 4 * noise(rng, shape, 2))
    points = blur(rng.random(shape) > 0.9994, 0.6) * 2
    image = mix(image, np.minimum(points, 1), 240)
    return np.asarray((image + 4 * noise(rng, shape, 0.4)) * blur(body, 0.7), dtype=np.float32)
