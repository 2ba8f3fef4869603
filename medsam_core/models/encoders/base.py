"""The interface of image encoders. What belongs here: the interface, and finding one by its spec.

Not here: any network, or what is known of an encoder without its code (`registry`).
"""

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from medsam_core.models.encoders.registry import EncoderSpec, Setting

PREFIX = "image_encoder."
"""Prefix of the encoder's keys in a `Segmenter`, and in published checkpoints of SAM's family."""


class Encoder(ABC):
    """Makes one architecture's networks and brings weights to them."""

    @abstractmethod
    def build(self, image_side: int, settings: Mapping[str, Setting]) -> nn.Module:
        """Build the network with fresh weights.

        Args:
            image_side: S, model pixels.
            settings: A value for each name in the spec's `settings`.

        Returns:
            A module from normalised images (B, 3, S, S) to embeddings (B, 256, S / stride, S / stride).
        """

    def from_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the keys of a published checkpoint, decoder included, to a `Segmenter`'s; by default they agree."""
        return dict(state)

    def last_norm(self, network: nn.Module) -> nn.Module | None:
        """Return the norm that gives the embeddings their scale and shift for each channel; by default none is known.

        Args:
            network: What `build` returned.

        Returns:
            A module with `weight` and `bias`, (256,), as SAM's neck ends with.
        """
        del network
        return None

    def resize_positions(self, state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Carry weights to another image side; by default none depends on it.

        Args:
            state: Weights of a `Segmenter` with this encoder.
            target: State dict of the same architecture at the other side; only its shapes are read.
        """
        del target
        return dict(state)


def load_encoder(spec: EncoderSpec) -> Encoder:
    """Import an encoder's module and return its builder.

    Raises:
        TypeError: If the spec's `builder` does not name an `Encoder`.
    """
    found = pkgutil.resolve_name(spec.builder)
    if not isinstance(found, Encoder):
        raise TypeError(f"{spec.builder}: expected the Encoder of {spec.name!r}, found {type(found).__name__}")
    return found
