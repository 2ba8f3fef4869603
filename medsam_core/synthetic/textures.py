"""What painters share. What belongs here: noise, soft edges, curves and bodies. Not here: any one modality's look.

Legend: ... any shape with rows and columns last. Images are float32 in 0..255 until the end.
"""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medsam_core.synthetic.shapes import BoolArray

Image = npt.NDArray[np.float32]
Colour = tuple[float, float, float]


def blur(image: npt.NDArray[np.generic], sigma: float) -> Image:
    """Blur rows and columns with a Gaussian, every slice for itself; (..., H, W), `sigma` in pixels."""
    sigmas = (0.0,) * (image.ndim - 2) + (sigma, sigma)
    return np.asarray(ndimage.gaussian_filter(image.astype(np.float32), sigmas, mode="nearest"))


def noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: float = 0.0) -> Image:
    """Return noise of mean 0 and standard deviation 1, grain `sigma` pixels; coarse grain links a volume's slices."""
    field = rng.standard_normal(shape, dtype=np.float32)
    if sigma == 0:
        return field
    sigmas = (min(sigma, 2.0),) * (len(shape) - 2) + (sigma, sigma)
    smooth = np.asarray(ndimage.gaussian_filter(field, sigmas, mode="wrap"))
    centred: Image = (smooth - smooth.mean()) / max(float(smooth.std()), 1e-6)
    return centred


def speckle(rng: np.random.Generator, shape: tuple[int, ...], grain: float) -> Image:
    """Return the amplitude of fully developed speckle, mean 1: the modulus of smooth complex Gaussian noise."""
    amplitude = np.hypot(noise(rng, shape, grain), noise(rng, shape, grain))
    return np.asarray(amplitude / amplitude.mean(), dtype=np.float32)


def mix(image: Image, weight: Image, value: Image | float) -> Image:
    """Return a blend: `image` where the weight is 0, `value` where it is 1, a mixture elsewhere."""
    return np.asarray(image + weight * (value - image), dtype=np.float32)


def tint(image: Image, weight: Image, colour: Colour | Image) -> Image:
    """Mix a colour, (3,) or (H, W, 3), into an RGB image (H, W, 3) by a weight (H, W)."""
    return mix(image, weight[..., None], np.asarray(colour, dtype=np.float32))


def pieces(layer: npt.NDArray[np.int64], softness: float) -> list[Image]:
    """Return a soft mask for every numbered shape of a layer: 1 inside, 0 outside, one half on the outline."""
    return [blur(layer == number, softness) for number in range(1, int(layer.max(initial=0)) + 1)]


def finish(image: Image) -> npt.NDArray[np.uint8]:
    """Round and clip to uint8."""
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def grid(shape: tuple[int, int]) -> tuple[Image, Image]:
    """Return rows and columns of (H, W), each from -1 to 1."""
    rows, columns = np.meshgrid(np.linspace(-1, 1, shape[0]), np.linspace(-1, 1, shape[1]), indexing="ij")
    return rows.astype(np.float32), columns.astype(np.float32)


def round_body(rng: np.random.Generator, shape: tuple[int, int], size: float, waviness: float) -> BoolArray:
    """Return (H, W) bool: a body about the centre that reaches `size` of the way to the image's edges."""
    rows, columns = grid(shape)
    angle = np.arctan2(rows, columns)
    phases = rng.uniform(0, 2 * np.pi, 3)
    ripple = sum(np.cos(order * angle + phase) / order for order, phase in zip((2, 3, 4), phases, strict=True))
    return np.asarray(np.hypot(rows, columns) < size * (1 + waviness * ripple))


def curve(rng: np.random.Generator, shape: tuple[int, int], length: float, bend: float, width: float) -> Image:
    """Return the weight, (H, W), of a winding line that starts anywhere.

    Args:
        rng: Source of randomness.
        shape: (H, W).
        length: In pixels.
        bend: Standard deviation of the turn per pixel, in radians.
        width: In pixels.
    """
    start, heading = rng.uniform(0, 1, 2) * shape, rng.uniform(0, 2 * np.pi)
    return line(rng, shape, (start[0], start[1]), heading, length, bend, width)


def line(
    rng: np.random.Generator,
    shape: tuple[int, int],
    start: tuple[float, float],
    heading: float,
    length: float,
    bend: float,
    width: float,
) -> Image:
    """Return the weight, (H, W), of a winding line from `start` (row, column); other arguments as in `curve`."""
    steps = max(int(length * 2), 2)
    turns = ndimage.gaussian_filter1d(rng.standard_normal(steps), 4, mode="nearest") * bend * 2
    headings = heading + np.cumsum(turns)
    rows = np.rint(start[0] + np.cumsum(np.sin(headings)) / 2).astype(int)
    columns = np.rint(start[1] + np.cumsum(np.cos(headings)) / 2).astype(int)
    inside = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
    canvas = np.zeros(shape, dtype=np.float32)
    canvas[rows[inside], columns[inside]] = 1
    return np.asarray(np.minimum(blur(canvas, width / 2) * width * 1.6, 1))
