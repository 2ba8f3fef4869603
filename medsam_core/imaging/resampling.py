"""Resampling of pixels, logits and masks between a native frame and a square one, behind one Protocol.

What belongs here: what a resampler has to give, and the one that needs numpy alone. Not here: the one on torch, with
which models train (`torch_resampling`), or what is resampled and why (`preprocessing`). Nothing here imports torch.

Legend: H W size before, h w size after, C channels, K boxes, G side of the loss grid.
All resampling is linear and separable. Pixel i covers [i, i + 1) in both frames, so the corners of the frames coincide
and not the centres of their corner pixels.
"""

from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

_BLOCK = 64
"""Pixels that are made by one product of matrices: few enough to leave most zero weights out."""


class Resampler(Protocol):
    """Resamples between frames; all implementations agree but for rounding."""

    def resize_image(self, image: npt.NDArray[np.uint8], height: int, width: int) -> Floats:
        """Resize an image bilinearly with antialias.

        Args:
            image: (H, W) or (H, W, C) uint8.
            height: h.
            width: w.

        Returns:
            (C, h, w) float32, C = 1 for (H, W), not rounded.
        """
        ...

    def resize_logits(self, logits: Floats, height: int, width: int) -> Floats:
        """Resize logits (K, H, W) to (K, h, w), bilinearly without antialias."""
        ...

    def cover(self, masks: npt.NDArray[np.bool_], rows: Floats, columns: Floats) -> Floats:
        """Return the share of each cell of a grid that masks cover.

        Args:
            masks: (K, H, W) bool.
            rows: (G, H), the share of each row of pixels in each row of cells.
            columns: (G, W), likewise.

        Returns:
            (K, G, G) float32.
        """
        ...


class NumpyResampler:
    """Resamples with numpy alone, as `torch.nn.functional.interpolate` does on a CPU."""

    def resize_image(self, image: npt.NDArray[np.uint8], height: int, width: int) -> Floats:
        """Resize an image bilinearly with antialias; see `Resampler`."""
        planes = np.moveaxis(image.reshape(*image.shape[:2], -1), -1, 0).astype(np.float32, order="C")
        rows, columns = triangle_weights(image.shape[0], height), triangle_weights(image.shape[1], width)
        return _weighted(_weighted(planes, columns).swapaxes(1, 2), rows).swapaxes(1, 2)

    def resize_logits(self, logits: Floats, height: int, width: int) -> Floats:
        """Resize logits bilinearly without antialias; see `Resampler`."""
        # Neighbours are picked rather than weighted by a matrix: an infinite logit must not reach beyond its own.
        rows, columns = _neighbours(logits.shape[-2], height), _neighbours(logits.shape[-1], width)
        wide = _between(logits[..., columns[0]], logits[..., columns[1]], columns[2])
        return _between(wide[..., rows[0], :], wide[..., rows[1], :], rows[2][:, None])

    def cover(self, masks: npt.NDArray[np.bool_], rows: Floats, columns: Floats) -> Floats:
        """Return the share of each cell that the masks cover; see `Resampler`."""
        return rows @ (masks.astype(np.float32) @ columns.T)


@lru_cache(maxsize=4)
def triangle_weights(length: int, wanted: int) -> Floats:
    """Return (wanted, length) float32: the weight of each pixel in each of `wanted` pixels, bilinear with antialias.

    A triangle around the centre of each new pixel, as wide as two of the wider pixels, cut at the border and brought
    to a sum of one.

    Args:
        length: Pixels along one axis.
        wanted: New pixels along it.
    """
    # In float32 throughout, as torch: a centre at 4000 pixels is told to a thousandth of a pixel only, and 0.1 grey
    # values depend on it.
    scale = np.float32(length) / np.float32(wanted)
    support = np.maximum(scale, np.float32(1))
    centres = scale * (np.arange(wanted, dtype=np.float32) + np.float32(0.5))
    first = np.maximum((centres - support + np.float32(0.5)).astype(np.int64), 0)
    last = np.minimum((centres + support + np.float32(0.5)).astype(np.int64), length)
    pixels = np.arange(length)
    distances = (pixels.astype(np.float32) - centres[:, None] + np.float32(0.5)) / support
    inside = (pixels >= first[:, None]) & (pixels < last[:, None])
    weights = np.where(inside, np.maximum(1 - np.abs(distances), 0), 0).astype(np.float32)
    weights /= weights.sum(axis=1, keepdims=True)
    weights.flags.writeable = False
    return weights


def _weighted(values: Floats, weights: Floats) -> Floats:
    """Return `values @ weights.T`, (..., wanted), in blocks of what is wanted: each needs a few of the pixels only."""
    result = np.empty((*values.shape[:-1], len(weights)), dtype=np.float32)
    for start in range(0, len(weights), _BLOCK):
        block = weights[start : start + _BLOCK]
        used = np.flatnonzero(block.any(axis=0))
        window = slice(used[0], used[-1] + 1)
        result[..., start : start + _BLOCK] = values[..., window] @ block[:, window].T
    return result


def _neighbours(length: int, wanted: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Floats]:
    """Return, for each of `wanted` pixels, the two of `length` it lies between and the weight of the second."""
    scale = np.float32(length) / np.float32(wanted)
    at = np.maximum(scale * (np.arange(wanted, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), 0)
    low = np.minimum(at.astype(np.int64), length - 1)
    return low, np.minimum(low + 1, length - 1), np.clip(at - low.astype(np.float32), 0, 1)


def _between(low: Floats, high: Floats, weight: Floats) -> Floats:
    return (1 - weight) * low + weight * high
