"""Boxes of a volume that travel from slice to slice. What belongs here: the rule `propagated`, and its order of slices.

Not here: asking a model (`slice_answers`), painting answers (`overlaps`).

As the published scripts of MedSAM and LiteMedSAM do, a box starts at the middle slice of its closed z range as it was
given and goes outward both ways; each slice is prompted with the tight box of the mask before it, grown by
`PROPAGATION_MARGIN_PX` and cut to the slice, or with the box as given where that mask is empty.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from medsam_core.imaging.prompts import tight_boxes
from medsam_core.imaging.resampling import Floats
from medsam_core.inference.overlaps import Canvas
from medsam_core.inference.slice_answers import SliceAnswers

PROPAGATION_MARGIN_PX = 3.0
"""Model-frame pixels by which a mask's tight box grows before it prompts the next slice (LiteMedSAM's `bbox_shift`)."""


@dataclass
class _Track:
    """One box of a volume on its way through the slices.

    Attributes:
        index: Its place among the boxes.
        box: (4,) `xyxy_px` of the native slice, half-open: the prompt as it was given.
        first: First slice.
        last: Last slice, inclusive.
        prompt: (4,) float32 in the model frame: what the next slice is prompted with.
        from_middle: The prompt that the middle slice gave, for the way down.
    """

    index: int
    box: npt.NDArray[np.int64]
    first: int
    last: int
    prompt: Floats
    from_middle: Floats = field(init=False)

    @property
    def middle(self) -> int:
        return (self.first + self.last) // 2


def propagate(
    answers: SliceAnswers,
    encode: Callable[[int], object],
    boxes: npt.NDArray[np.int64],
    shape: tuple[int, int],
    canvas: Canvas,
) -> None:
    """Answer the boxes of a volume; all travel together, up the volume and then down.

    Args:
        answers: Answers boxes on an encoded slice.
        encode: Gives the encoded slice of a number; one that remembers encodes most slices once.
        boxes: (N, 6) of `contract`, N >= 1.
        shape: (H, W) of a slice.
        canvas: Receives the answers.
    """
    tracks = _tracks(answers, boxes, shape)
    up = range(min(track.middle for track in tracks), max(track.last for track in tracks) + 1)
    _sweep(answers, encode, up, [(track, track.middle, track.last) for track in tracks], shape, canvas)
    for track in tracks:
        track.prompt = track.from_middle
    down = range(max(track.middle for track in tracks) - 1, min(track.first for track in tracks) - 1, -1)
    _sweep(answers, encode, down, [(track, track.first, track.middle - 1) for track in tracks], shape, canvas)


def _tracks(answers: SliceAnswers, boxes: npt.NDArray[np.int64], shape: tuple[int, int]) -> list[_Track]:
    planar = boxes[:, [0, 1, 3, 4]]
    prompts = answers.prompts(planar, shape)
    return [
        _Track(index, planar[index], first=int(box[2]), last=int(box[5]), prompt=prompts[index])
        for index, box in enumerate(boxes)
    ]


def _sweep(
    answers: SliceAnswers,
    encode: Callable[[int], object],
    slices: Iterable[int],
    visits: list[tuple[_Track, int, int]],
    shape: tuple[int, int],
    canvas: Canvas,
) -> None:
    """Answer, slice by slice, the tracks between their first and last visit, and update their prompts."""
    for z in slices:
        here = [track for track, first, last in visits if first <= z <= last]
        if not here:
            continue
        prompts = np.stack([track.prompt for track in here])
        for track, logits in zip(here, answers.logits(encode(z), prompts, shape), strict=True):
            mask = canvas.paint(track.index, logits, z)
            track.prompt = _next_prompt(answers, track, mask)
            if z == track.middle:
                track.from_middle = track.prompt


def _next_prompt(answers: SliceAnswers, track: _Track, mask: npt.NDArray[np.bool_]) -> Floats:
    """Return what the slice after this mask is prompted with, (4,) in the model frame."""
    _, found = tight_boxes(mask.view(np.uint8))
    if not len(found):
        given: Floats = answers.prompts(track.box[None], mask.shape)[0]
        return given
    outward = PROPAGATION_MARGIN_PX * np.array([-1, -1, 1, 1], dtype=np.float32)
    height, width = answers.content(mask.shape)
    grown: Floats = np.clip(
        answers.prompts(found, mask.shape)[0] + outward, 0, np.array([width, height] * 2, dtype=np.float32)
    )
    return grown
