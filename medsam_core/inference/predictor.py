"""Predicting a case: from an image or volume and its boxes to `segs` in the challenge's contract.

What belongs here: which slices are encoded, and which boxes are asked on each. Not here: files, asking about a slice
(`slice_answers`), prompts and pixels by rule (`volume_prompts`, `propagation`, `overlaps`), or the model
(`promptable`). Nothing here imports torch: any model with the contract of `PromptableModel` will do.

Legend: H W native pixels, D slices, N boxes of the case, S side of the model frame.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from medsam_core.imaging.contract import checked_boxes
from medsam_core.imaging.promptable import BringsResampler, MakesPromptable, PromptableModel
from medsam_core.imaging.resampling import NumpyResampler, Resampler
from medsam_core.imaging.views import Boxes
from medsam_core.inference.overlaps import Canvas, Overlap
from medsam_core.inference.propagation import propagate
from medsam_core.inference.slice_answers import SliceAnswers
from medsam_core.inference.volume_prompts import VolumePrompts, section_boxes

Image = npt.NDArray[np.uint8]


class Predictor:
    """Predicts cases with one model.

    An image is encoded once, and so is a slice of a volume, unless boxes are propagated through more slices than are
    remembered.

    Args:
        model: What answers the boxes, or a `Segmenter` in eval mode, which answers where its weights lie.
        batch_boxes: Boxes decoded at a time; bounds memory.
        constant_image: Grey value that replaces every pixel, to measure what a model predicts from boxes alone; None:
            the real image.
        cached_slices: Embeddings of a volume's slices kept at a time where boxes are propagated; bounds memory (4 MiB
            each at S = 1024).
        resampler: Resizes images and logits; None for the one that the model brings, or else numpy's.
        volume_prompts: With what each slice of a volume is prompted.
        overlap: Who gets a pixel that several boxes claim.

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
        *,
        volume_prompts: VolumePrompts = "sections",
        overlap: Overlap = "last",
    ) -> None:
        if batch_boxes < 1 or cached_slices < 1:
            raise ValueError(f"expected batch_boxes and cached_slices >= 1, found {batch_boxes} and {cached_slices}")
        promptable = model.promptable() if isinstance(model, MakesPromptable) else model
        own = promptable.resampler if isinstance(promptable, BringsResampler) else NumpyResampler()
        self._answers = SliceAnswers(promptable, own if resampler is None else resampler, batch_boxes, constant_image)
        self._cached_slices = cached_slices
        self._volume_prompts, self._overlap = volume_prompts, overlap

    def predict(self, imgs: Image, boxes: Boxes, *, is_3d: bool) -> npt.NDArray[np.uint16]:
        """Predict a case.

        Args:
            imgs: (H, W) or (H, W, 3) for an image, (D, H, W) for a volume; uint8.
            boxes: (N, 4) or (N, 6), half-open in x and y, closed in z, native pixels; N may be 0.
            is_3d: Whether `imgs` is a volume: an array (D, H, 3) and an RGB image look alike.

        Returns:
            `segs`, uint16, (H, W) or (D, H, W): label k where the k-th box (from 1) answered; where several did, the
            one that `overlap` says.

        Raises:
            ValueError: `imgs` is not of a form above, or the boxes break the contract.
        """
        _check_image(imgs, is_3d=is_3d)
        shape = imgs.shape if is_3d else imgs.shape[:2]
        checked = checked_boxes(np.asarray(boxes), shape)
        if not len(checked):
            return np.zeros(shape, dtype=np.uint16)
        canvas = Canvas(shape, checked, self._overlap)
        if not is_3d:
            self._answer(imgs, checked, np.arange(len(checked)), canvas)
        elif self._volume_prompts == "sections":
            self._predict_sections(imgs, checked, canvas)
        else:
            encode = lru_cache(maxsize=self._cached_slices)(lambda z: self._answers.encode(imgs[z]))
            propagate(self._answers, encode, checked, (imgs.shape[1], imgs.shape[2]), canvas)
        return canvas.segs()

    def _predict_sections(self, volume: Image, boxes: npt.NDArray[np.int64], canvas: Canvas) -> None:
        first, last = boxes[:, 2], boxes[:, 5]
        for z in range(int(first.min()), int(last.max()) + 1):
            here = np.flatnonzero((first <= z) & (z <= last))
            if len(here):
                self._answer(volume[z], section_boxes(boxes[here], z), here, canvas, z)

    def _answer(
        self, image: Image, boxes: Boxes, indices: npt.NDArray[np.int64], canvas: Canvas, z: int | None = None
    ) -> None:
        """Answer native boxes, (K, 4), on one slice; `indices` (K,) are their places in the case."""
        shape = image.shape[:2]
        logits = self._answers.logits(self._answers.encode(image), self._answers.prompts(boxes, shape), shape)
        for index, one in zip(indices.tolist(), logits, strict=True):
            canvas.paint(index, one, z)


def _check_image(imgs: Image, *, is_3d: bool) -> None:
    """Raise ValueError unless `imgs` is a non-empty uint8 image or volume."""
    fits = imgs.ndim == 3 if is_3d else imgs.ndim == 2 or (imgs.ndim == 3 and imgs.shape[-1] == 3)
    if not fits or imgs.dtype != np.uint8 or imgs.size == 0:
        expected = "(D, H, W)" if is_3d else "(H, W) or (H, W, 3)"
        raise ValueError(f"imgs: expected a non-empty uint8 array {expected}, found {imgs.dtype} {imgs.shape}")
