"""A `Segmenter` as a `medsam_core.imaging.promptable.PromptableModel`: torch behind the contract in numpy.

What belongs here: the border between numpy and torch when a model predicts. Not here: the model (`segmenter`), or what
is asked of it in which order (`inference`).
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from medsam_core.base.allocator import keep_freed_memory
from medsam_core.base.geometry import Geometry
from medsam_core.imaging.resampling import Floats
from medsam_core.imaging.torch_resampling import TorchResampler, as_tensor

if TYPE_CHECKING:
    from medsam_core.models.segmenter import Segmenter


class TorchModel:
    """A model in evaluation mode, where its weights lie; from then on the process keeps freed memory (`allocator`).

    Args:
        segmenter: On any device.

    Raises:
        ValueError: It is in training mode, where batch norm would depend on what is predicted together.
    """

    def __init__(self, segmenter: "Segmenter") -> None:
        if segmenter.training:
            raise ValueError("expected a model in eval mode, found training mode; call model.eval() first")
        self._segmenter = segmenter
        self._device = next(segmenter.parameters()).device
        self.resampler = TorchResampler()
        keep_freed_memory()

    @property
    def geometry(self) -> Geometry:
        """The segmenter's."""
        return self._segmenter.geometry

    @torch.inference_mode()
    def encode(self, image: Floats) -> Tensor:
        """Encode a raw image, (3, S, S), to its embedding, (1, 256, h, w), which stays on the device."""
        return self._segmenter.encode(as_tensor(image)[None].to(self._device))

    @torch.inference_mode()
    def decode(self, embedding: object, boxes: Floats) -> tuple[Floats, Floats]:
        """Decode boxes, (K, 4) in the model frame, to logits (K, 4h, 4w) and predicted IoUs (K,).

        Raises:
            TypeError: If the embedding is not what `encode` gave.
        """
        if not isinstance(embedding, Tensor):
            raise TypeError(f"embedding: expected the tensor that encode gave, found {type(embedding).__name__}")
        logits, iou = self._segmenter.decode(embedding, as_tensor(boxes)[None].to(self._device))
        return _to_numpy(logits[0]), _to_numpy(iou[0])


def _to_numpy(values: Tensor) -> Floats:
    # In float32 on the way out: half-precision logits are resized and compared in full precision.
    array: Floats = values.to("cpu", torch.float32).numpy()
    return array
