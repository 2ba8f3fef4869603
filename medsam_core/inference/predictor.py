"""Predicting a case: from an image or volume and its boxes to `segs` in the challenge's contract.

What belongs here: the order in which slices are encoded and boxes decoded, and how a volume's box moves from slice to
slice. Not here: files, the preprocessing itself (`preprocessing`), or the model (`promptable`). Nothing here imports
torch: any model with the contract of `PromptableModel` will do.

Legend: H W native pixels, D slices, N boxes of the case, K boxes of one call, S side of the model frame.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from medsam_core.imaging.contract import checked_boxes, write_answer
from medsam_core.imaging.preprocessing import image_to_model, masks_from_logits
from medsam_core.imaging.promptable import BringsResampler, MakesPromptable, PromptableModel
from medsam_core.imaging.prompts import tight_boxes
from medsam_core.imaging.resampling import Floats, NumpyResampler, Resampler
from medsam_core.imaging.views import Boxes, View, boxes_to_model

Image = npt.NDArray[np.uint8]
Masks = npt.NDArray[np.bool_]

PROPAGATION_MARGIN_PX = 3.0
"""Model-frame pixels by which a mask's tight box grows before it prompts the next slice (LiteMedSAM's `bbox_shift`)."""


@dataclass
class _Track:
    """One box of a volume on its way through the slices.

    Attributes:
        label: Its 1-based order.
        box: (4,) `xyxy_px` of the native slice, half-open: the prompt as it was given.
        first: First slice.
        last: Last slice, inclusive.
        prompt: (4,) float32 in the model frame: what the next slice is prompted with.
        from_middle: The prompt that the middle slice gave, for the way down.
    """

    label: int
    box: npt.NDArray[np.int64]
    first: int
    last: int
    prompt: Floats
    from_middle: Floats = field(init=False)

    @property
    def middle(self) -> int:
        return (self.first + self.last) // 2


class Predictor:
    """Predicts cases with one model.

    An image is encoded once. A volume's box starts at the middle slice of its closed z range with the box as given and
    goes outward both ways; each slice is prompted with the tight box of the mask before it, grown by
    `PROPAGATION_MARGIN_PX` and cut to the slice, or with the box as given where that mask is empty. All boxes travel
    together, up the volume and then down, so that a slice is encoded at most twice and mostly once.

    Args:
        model: What answers the boxes, or a `Segmenter` in eval mode, which answers where its weights lie.
        batch_boxes: Boxes decoded at a time; bounds memory.
        constant_image: Grey value that replaces every pixel, to measure what a model predicts from boxes alone; None:
            the real image.
        cached_slices: Embeddings of a volume's slices kept at a time; bounds memory (4 MiB each at S = 1024).
        resampler: Resizes images and logits; None for the one that the model brings, or else numpy's.

    Raises:
        ValueError: The model is a `Segmenter` in training mode, where batch norm would depend on what is predicted
            together, or a size is below 1.
    """

    def __init__(
        self,
        model: PromptableModel | MakesPromptable,
        batch_boxes: int = 16,
        constant_image: int | None = None,
        cached_slices: int = 64,
        resampler: Resampler | None = None,
    ) -> None:
        if batch_boxes < 1 or cached_slices < 1:
            raise ValueError(f"expected batch_boxes and cached_slices >= 1, found {batch_boxes} and {cached_slices}")
        self._model = model.promptable() if isinstance(model, MakesPromptable) else model
        own = self._model.resampler if isinstance(self._model, BringsResampler) else NumpyResampler()
        self._resampler = own if resampler is None else resampler
        self._batch_boxes = batch_boxes
        self._constant_image = constant_image
        self._cached_slices = cached_slices

    def predict(self, imgs: Image, boxes: Boxes, *, is_3d: bool) -> npt.NDArray[np.uint16]:
        """Predict a case.

        Args:
            imgs: (H, W) or (H, W, 3) for an image, (D, H, W) for a volume; uint8.
            boxes: (N, 4) or (N, 6), half-open in x and y, closed in z, native pixels; N may be 0.
            is_3d: Whether `imgs` is a volume: an array (D, H, 3) and an RGB image look alike.

        Returns:
            `segs`, uint16, (H, W) or (D, H, W): label k where the k-th box (from 1) answered, the later box on top.

        Raises:
            ValueError: `imgs` is not of a form above, or the boxes break the contract.
        """
        _check_image(imgs, is_3d=is_3d)
        shape = imgs.shape if is_3d else imgs.shape[:2]
        checked = checked_boxes(np.asarray(boxes), shape)
        segs = np.zeros(shape, dtype=np.uint16)
        if not len(checked):
            return segs
        if is_3d:
            self._predict_volume(imgs, checked, segs)
        else:
            self._predict_image(imgs, checked, segs)
        return segs

    def _predict_image(self, image: Image, boxes: npt.NDArray[np.int64], segs: npt.NDArray[np.uint16]) -> None:
        prompts = self._prompts(boxes, segs.shape)
        for label, mask in enumerate(self._masks(self._encode(image), prompts, segs.shape), start=1):
            write_answer(segs, mask, label)

    def _predict_volume(self, volume: Image, boxes: npt.NDArray[np.int64], segs: npt.NDArray[np.uint16]) -> None:
        embedding_of = lru_cache(maxsize=self._cached_slices)(lambda z: self._encode(volume[z]))
        tracks = self._tracks(boxes, volume.shape[1:])
        up = range(min(track.middle for track in tracks), max(track.last for track in tracks) + 1)
        self._sweep(up, tracks, lambda track, z: track.middle <= z <= track.last, embedding_of, segs)
        for track in tracks:
            track.prompt = track.from_middle
        down = range(max(track.middle for track in tracks) - 1, min(track.first for track in tracks) - 1, -1)
        self._sweep(down, tracks, lambda track, z: track.first <= z < track.middle, embedding_of, segs)

    def _sweep(
        self,
        slices: Iterable[int],
        tracks: list[_Track],
        visits: Callable[[_Track, int], bool],
        embedding_of: Callable[[int], object],
        segs: npt.NDArray[np.uint16],
    ) -> None:
        """Predict the tracks of each slice in turn, and update their prompts."""
        for z in slices:
            here = [track for track in tracks if visits(track, z)]
            if not here:
                continue
            prompts = np.stack([track.prompt for track in here])
            for track, mask in zip(here, self._masks(embedding_of(z), prompts, segs.shape[1:]), strict=True):
                write_answer(segs[z], mask, track.label)
                track.prompt = self._next_prompt(track, mask)
                if z == track.middle:
                    track.from_middle = track.prompt

    def _tracks(self, boxes: npt.NDArray[np.int64], shape: tuple[int, ...]) -> list[_Track]:
        planar = boxes[:, [0, 1, 3, 4]]
        prompts = self._prompts(planar, shape)
        return [
            _Track(label, planar[label - 1], first=int(box[2]), last=int(box[5]), prompt=prompts[label - 1])
            for label, box in enumerate(boxes, start=1)
        ]

    def _next_prompt(self, track: _Track, mask: Masks) -> Floats:
        """Return what the slice after this mask is prompted with, (4,) in the model frame."""
        _, found = tight_boxes(mask.view(np.uint8))
        box = found if len(found) else track.box[None]
        prompt: Floats = self._prompts(box, mask.shape)[0]
        if len(found):
            outward = PROPAGATION_MARGIN_PX * np.array([-1, -1, 1, 1], dtype=np.float32)
            height, width = self._model.geometry.content(*mask.shape)
            prompt = np.clip(prompt + outward, 0, np.array([width, height] * 2, dtype=np.float32))
        return prompt

    def _prompts(self, boxes: npt.NDArray[np.int64], shape: tuple[int, ...]) -> Floats:
        """Scale native boxes, (K, 4), to the model frame."""
        view = View.whole(shape[0], shape[1])
        return boxes_to_model(boxes, view, self._model.geometry)

    def _encode(self, image: Image) -> object:
        """Encode one slice, (H, W) or (H, W, 3)."""
        if self._constant_image is not None:
            image = np.full_like(image, self._constant_image)
        view = View.whole(*image.shape[:2])
        return self._model.encode(image_to_model(image, view, self._model.geometry, self._resampler))

    def _masks(self, embedding: object, prompts: Floats, shape: tuple[int, ...]) -> Iterable[Masks]:
        """Yield the native mask, (H, W), of each prompt, (K, 4) in the model frame, on one embedded slice."""
        height, width = shape
        side = self._model.geometry.logit_side
        for start in range(0, len(prompts), self._batch_boxes):
            batch = prompts[start : start + self._batch_boxes]
            logits, _ = self._model.decode(embedding, batch)
            expected = (len(batch), side, side)
            if logits.shape != expected:
                raise ValueError(f"logits: expected {expected}, found {logits.shape}; mend the model's decode")
            yield from masks_from_logits(logits, height, width, self._model.geometry, self._resampler)


def _check_image(imgs: Image, *, is_3d: bool) -> None:
    """Raise ValueError unless `imgs` is a non-empty uint8 image or volume."""
    fits = imgs.ndim == 3 if is_3d else imgs.ndim == 2 or (imgs.ndim == 3 and imgs.shape[-1] == 3)
    if not fits or imgs.dtype != np.uint8 or imgs.size == 0:
        expected = "(D, H, W)" if is_3d else "(H, W) or (H, W, 3)"
        raise ValueError(f"imgs: expected a non-empty uint8 array {expected}, found {imgs.dtype} {imgs.shape}")
