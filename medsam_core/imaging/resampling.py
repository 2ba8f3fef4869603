"""Resampling of pixels, logits and masks between a native frame and a square one, behind one Protocol.

What belongs here: the Protocol of a resampler, and an implementation in numpy alone. Not here: the one on torch, used
in training (`torch_resampling`), or what is resampled and why (`preprocessing`). Nothing here imports torch.

Legend: H W size before, h w size after, C channels, K boxes, G side of the loss grid.
All resampling is linear and separable; images are resized bilinearly or to means over areas. Pixel i covers [i, i + 1)
in both frames, so the corners of the two frames coincide (`align_corners=False` in torch).
"""

from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

_BLOCK = 64
"""Pixels computed by one matrix product: few, so that most weights that are zero are left out."""


class Resampler(Protocol):
    """Resamples between frames; all implementations agree up to rounding."""

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
        return _resized(image, triangle_weights(image.shape[0], height), triangle_weights(image.shape[1], width))

    def resize_logits(self, logits: Floats, height: int, width: int) -> Floats:
        """Resize logits bilinearly without antialias; see `Resampler`."""
        # Neighbours are indexed rather than weighted by a matrix, in which an infinite logit would make others nan.
        rows, columns = _neighbours(logits.shape[-2], height), _neighbours(logits.shape[-1], width)
        wide = _between(logits[..., columns[0]], logits[..., columns[1]], columns[2])
        return _between(wide[..., rows[0], :], wide[..., rows[1], :], rows[2][:, None])

    def cover(self, masks: npt.NDArray[np.bool_], rows: Floats, columns: Floats) -> Floats:
        """Return the share of each cell that the masks cover; see `Resampler`."""
        return rows @ (masks.astype(np.float32) @ columns.T)


@lru_cache(maxsize=4)
def triangle_weights(length: int, wanted: int) -> Floats:
    """Return (wanted, length) float32: the weight of each pixel in each of `wanted` pixels, bilinear with antialias.

    Weights are a triangle around the centre of the new pixel, two pixels of the coarser grid wide, cut at the border
    and normalised to a sum of one.

    Args:
        length: Pixels along one axis.
        wanted: New pixels along it.
    """
    # float32 throughout, as in torch: at 4000 pixels a centre is exact to a thousandth of a pixel only, which changes
    # results by 0.1 grey values.
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


def area_resized(image: npt.NDArray[np.uint8], height: int, width: int) -> Floats:
    """Resize an image to means over the area of each new pixel, on every engine alike.

    Args:
        image: (H, W) or (H, W, C) uint8.
        height: h.
        width: w.

    Returns:
        (C, h, w) float32, C = 1 for (H, W), not rounded. OpenCV's INTER_AREA rounds the same values to uint8.
    """
    return _resized(image, area_weights(image.shape[0], height), area_weights(image.shape[1], width))


@lru_cache(maxsize=4)
def area_weights(length: int, cells: int, filled: float = 1.0) -> Floats:
    """Return (cells, length) float32: the share of each pixel in the mean over each of a row of cells.

    Pixels on the border of a cell count by the part inside. torch's `area` mode averages whole pixels over overlapping
    windows instead, which differs from the area where one size does not divide the other.

    Args:
        length: Pixels along one axis.
        cells: Cells along it.
        filled: The share of the cells that the pixels fill; nothing lies in those beyond.
    """
    edges = np.arange(cells + 1)[:, None] * (length / cells * (1 / filled))
    pixels = np.arange(length)
    overlap = np.maximum(np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels), 0)
    weights: Floats = (overlap * (cells / length * filled)).astype(np.float32)
    weights.flags.writeable = False
    return weights


def _resized(image: npt.NDArray[np.uint8], rows: Floats, columns: Floats) -> Floats:
    """Return (C, h, w) float32 of an image (H, W) or (H, W, C), by weights (h, H) of its rows and (w, W) of columns."""
    planes = np.moveaxis(image.reshape(*image.shape[:2], -1), -1, 0).astype(np.float32, order="C")
    return _weighted(_weighted(planes, columns).swapaxes(1, 2), rows).swapaxes(1, 2)


def _weighted(values: Floats, weights: Floats) -> Floats:
    """Return `values @ weights.T`, (..., wanted), in blocks of new pixels, each of which needs few of the old ones."""
    result = np.empty((*values.shape[:-1], len(weights)), dtype=np.float32)
    for start in range(0, len(weights), _BLOCK):
        block = weights[start : start + _BLOCK]
        used = np.flatnonzero(block.any(axis=0))
        window = slice(used[0], used[-1] + 1)
        result[..., start : start + _BLOCK] = values[..., window] @ block[:, window].T
    return result


def _neighbours(length: int, wanted: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Floats]:
    """Return, for each of `wanted` pixels, the two of `length` pixels around it and the weight of the second."""
    scale = np.float32(length) / np.float32(wanted)
    at = np.maximum(scale * (np.arange(wanted, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), 0)
    low = np.minimum(at.astype(np.int64), length - 1)
    return low, np.minimum(low + 1, length - 1), np.clip(at - low.astype(np.float32), 0, 1)


def _between(low: Floats, high: Floats, weight: Floats) -> Floats:
    return (1 - weight) * low + weight * high
