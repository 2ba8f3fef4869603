"""Mean and standard deviation of pixels by channel, with equal weight for every modality.

What belongs here: exact pooled moments. Not here: which slices are used.

The paper normalises by statistics of the training images (section 2.1); its code averages the standard deviations of
batches, which is not the pooled one. Here integer histograms are summed, so the order of slices does not matter.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt


def histogram(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Count the 256 values of each channel.

    Args:
        image: (H, W) or (H, W, 3); a grey image counts as three equal channels.

    Returns:
        (3, 256) int64.
    """
    if image.ndim == 2:
        return np.repeat(np.bincount(image.reshape(-1), minlength=256)[None], 3, axis=0).astype(np.int64)
    return np.stack([np.bincount(image[..., c].reshape(-1), minlength=256) for c in range(3)]).astype(np.int64)


def balanced_statistics(
    images: Iterable[tuple[str, npt.NDArray[np.uint8]]],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Pool pixels within each modality, then average the moments over modalities.

    Args:
        images: Modality and image of every slice.

    Returns:
        Mean and standard deviation, (3,) each, in [0, 1] units.

    Raises:
        ValueError: If there is no image.
    """
    counts: dict[str, npt.NDArray[np.int64]] = {}
    for modality, image in images:
        counts[modality] = counts.get(modality, np.zeros((3, 256), np.int64)) + histogram(image)
    if not counts:
        raise ValueError("pixel statistics: expected at least one training slice, found none; check the split")
    levels = np.arange(256) / 255
    shares = [counts[name] / counts[name].sum(axis=1, keepdims=True) for name in sorted(counts)]
    share = np.mean(shares, axis=0)
    mean = share @ levels
    return mean, np.sqrt(share @ levels**2 - mean**2)
