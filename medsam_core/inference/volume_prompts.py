"""The box with which each slice of a volume is prompted. What belongs here: the rules, in numpy.

Not here: asking a model (`slice_answers`), or the order of slices (`predictor`). Which rule is better and by how
much: `docs/adr/0031`.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt

VolumePrompts = Literal["sections", "propagated"]
"""`sections`: the box of the cut of each slice through the ellipsoid that fills the volume's box. `propagated`: the
tight box of the mask of the slice before, outward from the middle, as in the published scripts of MedSAM and
LiteMedSAM."""


def section_boxes(boxes: npt.NDArray[np.int64], z: int) -> npt.NDArray[np.float64]:
    """Return the boxes of the cuts of one slice through the ellipsoids that touch all sides of boxes.

    A cut is never smaller than a pixel along either side: the box says that its object reaches the slice.

    Args:
        boxes: (K, 6) of `contract`, native pixels and slices; each contains the slice.
        z: The slice; its centre is cut.

    Returns:
        (K, 4) `xyxy_px` of the native slice, half-open, fractions of pixels.

    Raises:
        ValueError: If a box does not contain the slice.
    """
    first, last = boxes[:, 2], boxes[:, 5]
    if not ((first <= z) & (z <= last)).all():
        raise ValueError(f"boxes: expected all to contain slice {z}, found slices {first.min()} to {last.max()}")
    low, high = boxes[:, [0, 1]].astype(np.float64), boxes[:, [3, 4]].astype(np.float64)
    height = (2 * z - (first + last)) / (last - first + 1)
    half_sides = np.maximum((high - low) / 2 * np.sqrt(1 - np.square(height))[:, None], 0.5)
    centres = (low + high) / 2
    return np.concatenate([centres - half_sides, centres + half_sides], axis=1)
