"""Pixels that several boxes claim. What belongs here: the rules by which one of them gets the pixel.

Not here: the contract of `segs` (`medsam_core.imaging.contract`), or predicting masks.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt

from medsam_core.imaging.contract import write_answer
from medsam_core.imaging.resampling import Floats

Overlap = Literal["last", "largest-first", "logit"]
"""Who gets a pixel: `last`, the later box, which is the challenge's contract; `largest-first`, the smallest box, as if
the larger were painted before it; `logit`, the box whose logit is highest there."""


def painting_order(boxes: npt.NDArray[np.int64], overlap: Overlap) -> npt.NDArray[np.int64]:
    """Return the indices of boxes in the order in which they are painted, the last on top; (N,).

    Args:
        boxes: (N, 4) or (N, 6) of `contract`.
        overlap: The rule.
    """
    if overlap != "largest-first":
        return np.arange(len(boxes))
    axes = boxes.shape[1] // 2
    sides = boxes[:, axes:] - boxes[:, :axes]
    sides[:, 2:] += 1  # closed at both ends in z
    return np.argsort(-sides.prod(axis=1), kind="stable")


class Canvas:
    """Collects the answers of a case's boxes.

    Args:
        shape: (H, W) or (D, H, W).
        boxes: (N, 4) or (N, 6) of `contract`.
        overlap: Who gets a pixel that several boxes claim.
    """

    def __init__(self, shape: tuple[int, ...], boxes: npt.NDArray[np.int64], overlap: Overlap) -> None:
        order = painting_order(boxes, overlap)
        # Answers are painted by rank, which no order of slices and sweeps can upset, and get their labels at the end.
        self._labels = np.concatenate([[0], order + 1]).astype(np.uint16)
        self._ranks = np.argsort(order) + 1
        self._painted = np.zeros(shape, dtype=np.uint16)
        self._highest = np.zeros(shape, dtype=np.float32) if overlap == "logit" else None

    def paint(self, box: int, logits: Floats, z: int | None = None) -> npt.NDArray[np.bool_]:
        """Paint the answer to a box; return its mask, (H, W).

        Args:
            box: Its index.
            logits: (H, W), native. The paper thresholds their sigmoid at 0.5, so the mask is where they are positive.
            z: The slice of a volume.
        """
        place = ... if z is None else z
        mask: npt.NDArray[np.bool_] = logits > 0
        painted, rank = self._painted[place], int(self._ranks[box])
        if self._highest is None:
            write_answer(painted, mask, rank)
        else:
            highest = self._highest[place]
            # Of two boxes with the same logit the later one, in whatever order they come.
            higher = mask & ((logits > highest) | ((logits == highest) & (painted < rank)))
            painted[higher] = rank
            highest[higher] = logits[higher]
        return mask

    def segs(self) -> npt.NDArray[np.uint16]:
        """Return the label map: label k where the k-th box (from 1) has the pixel."""
        found: npt.NDArray[np.uint16] = self._labels[self._painted]
        return found
