"""The contract of a promptable model: arrays of numpy in and out, on any engine.

What belongs here: the Protocol between `inference` and any model, whether it runs on torch or elsewhere. Not here: any
implementation (`medsam_core.models.torch_model` has that of torch). Nothing here imports torch.

Legend: S side of the model frame in pixels, K boxes, h w of the logits.
"""

from typing import Protocol, runtime_checkable

from medsam_core.base.geometry import Geometry
from medsam_core.imaging.resampling import Floats, Resampler


class PromptableModel(Protocol):
    """Predicts masks for boxes on an image that it encodes once."""

    @property
    def geometry(self) -> Geometry:
        """The sizes of what it takes and gives."""
        ...

    def encode(self, image: Floats) -> object:
        """Encode an image for any number of `decode`.

        Args:
            image: (3, S, S) float32 in the model frame, raw grey values 0 to 255; it may be read-only
                and of any strides.

        Returns:
            The embedding, in whatever form `decode` of the same model takes.
        """
        ...

    def decode(self, embedding: object, boxes: Floats) -> tuple[Floats, Floats]:
        """Decode boxes on an encoded image, a single mask each.

        Args:
            embedding: As `encode` gave it.
            boxes: (K, 4) float32, xyxy_px, half-open, in the model frame; K >= 1.

        Returns:
            Logits (K, h, w) and predicted IoUs (K,), both float32.
        """
        ...


@runtime_checkable
class MakesPromptable(Protocol):
    """Something of an engine's own, such as a `Segmenter`, that can be used as a `PromptableModel`."""

    def promptable(self) -> PromptableModel:
        """Return it behind the contract."""
        ...


@runtime_checkable
class BringsResampler(Protocol):
    """A model whose engine resamples too: the same pixels as in its training, to the last bit."""

    @property
    def resampler(self) -> Resampler:
        """What resamples for it."""
        ...
