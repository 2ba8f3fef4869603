"""Asking a model about one slice. What belongs here: from native pixels and boxes to native logits.

Not here: which slices and boxes of a case are asked (`predictor`, `propagation`), the preprocessing itself
(`medsam_core.imaging.preprocessing`), or the model (`promptable`).

Legend: H W native pixels, K boxes of one call, S side of the model frame.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from medsam_core.imaging.preprocessing import image_to_model, logits_to_native
from medsam_core.imaging.promptable import PromptableModel
from medsam_core.imaging.resampling import Floats, Resampler
from medsam_core.imaging.views import Boxes, View, boxes_to_model


class SliceAnswers:
    """Encodes slices with a model and answers boxes on them.

    Args:
        model: What is asked.
        resampler: Resizes images and logits.
        batch_boxes: Boxes decoded at a time; bounds memory.
        constant_image: Grey value that replaces every pixel; None: the real image.
    """

    def __init__(
        self, model: PromptableModel, resampler: Resampler, batch_boxes: int, constant_image: int | None
    ) -> None:
        self._model, self._resampler = model, resampler
        self._batch_boxes, self._constant_image = batch_boxes, constant_image

    def encode(self, image: npt.NDArray[np.uint8]) -> object:
        """Encode one slice, (H, W) or (H, W, 3)."""
        if self._constant_image is not None:
            image = np.full_like(image, self._constant_image)
        view = View.whole(*image.shape[:2])
        return self._model.encode(image_to_model(image, view, self._model.geometry, self._resampler))

    def prompts(self, boxes: Boxes, shape: tuple[int, ...]) -> Floats:
        """Scale native boxes, (K, 4), of a slice of shape (H, W) to the model frame, (K, 4) float32."""
        return boxes_to_model(boxes, View.whole(shape[0], shape[1]), self._model.geometry)

    def content(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return the height and width of the model frame that a slice of shape (H, W) fills."""
        return self._model.geometry.content(*shape)

    def logits(self, embedding: object, prompts: Floats, shape: tuple[int, ...]) -> Iterable[Floats]:
        """Yield the native logits, (H, W) float32, of each prompt on one encoded slice.

        One at a time, as those of many boxes on a 3000 x 4000 slice would take gigabytes.

        Args:
            embedding: As `encode` gave it.
            prompts: (K, 4) in the model frame.
            shape: (H, W).

        Raises:
            ValueError: If the model answers in another shape than its geometry says.
        """
        geometry, (height, width) = self._model.geometry, shape
        for start in range(0, len(prompts), self._batch_boxes):
            batch = prompts[start : start + self._batch_boxes]
            logits, _ = self._model.decode(embedding, batch)
            expected = (len(batch), geometry.logit_side, geometry.logit_side)
            if logits.shape != expected:
                raise ValueError(f"logits: expected {expected}, found {logits.shape}; mend the model's decode")
            for one in logits.astype(np.float32, copy=False):
                yield logits_to_native(one[None], height, width, geometry, self._resampler)[0]
