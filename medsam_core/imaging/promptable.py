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
        """The sizes of its images, embeddings and logits."""
        ...

    def encode(self, image: Floats) -> object:
        """Encode an image for any number of `decode`.

        Args:
            image: (3, S, S) float32 in the model frame, raw grey values 0 to 255. The array may be read-only, and its
                strides are arbitrary.

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
    """An engine's own model, such as a `Segmenter`, that can be used as a `PromptableModel`."""

    def promptable(self) -> PromptableModel:
        """Return this model as a `PromptableModel`."""
        ...


@runtime_checkable
class BringsResampler(Protocol):
    """A model with a resampler of its engine, so that prediction sees bit for bit the pixels that training saw."""

    @property
    def resampler(self) -> Resampler:
        """The resampler."""
        ...
