"""The sizes of a model's input and output. What belongs here: sides of grids, frames and resampling by name.

Not here: bringing pixels or boxes into a frame (`preprocessing`), or which encoder has which geometry
(`medsam_core.models.encoders.registry`). Nothing here imports torch.

A frame says how a native slice is resized into the square of S x S model pixels: to which height and width. The
resized slice lies in the upper left corner, and zeros fill the rest.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

EMBEDDING_CHANNELS = 256
"""Channels of every image embedding: what SAM's prompt encoder and mask decoder work with."""

DECODER_UPSCALING = 4
"""Logit cells along each side of an embedding cell: SAM's mask decoder upsamples twice by a factor of two."""

SQUARE = "square"
"""The paper's frame: the slice is stretched to the square, whatever its aspect ratio."""

PADDED = "padded"
"""SAM's frame: the longest side fills the square, and the aspect ratio is kept."""


def _stretched(height: int, width: int, side: int) -> tuple[int, int]:  # noqa: ARG001 - the size does not matter here
    return side, side


def _longest_side(height: int, width: int, side: int) -> tuple[int, int]:
    longest = max(height, width)
    # Integer arithmetic, rounded half up; a thin slice keeps at least one pixel.
    content_height, content_width = ((2 * length * side + longest) // (2 * longest) for length in (height, width))
    return max(1, content_height), max(1, content_width)


FRAMES: MappingProxyType[str, Callable[[int, int, int], tuple[int, int]]] = MappingProxyType(
    {SQUARE: _stretched, PADDED: _longest_side}
)
"""Frame -> function of native height, native width and S that returns the slice's height and width in model pixels."""


BILINEAR = "bilinear"
"""Images are resized bilinearly with antialias: a new pixel is a weighted mean, over twice its own area where it is
larger than the old ones. The paper's."""

AREA = "area"
"""A new pixel is the mean of what it covers of the old ones, as OpenCV's INTER_AREA has it; LiteMedSAM's."""

RESAMPLINGS = (BILINEAR, AREA)


@dataclass(frozen=True)
class Geometry:
    """The sizes of a model's input, embedding and logits, as cells along each side, and how images come into it.

    Attributes:
        image_side: S, side of the square input in model pixels.
        embedding_side: Side of the image embedding.
        logit_side: Side of the low-resolution logits, which is the grid of the losses.
        frame: How a slice is brought into the square, a key of `FRAMES`.
        resampling: How its pixels are resized, one of `RESAMPLINGS`.
    """

    image_side: int
    embedding_side: int
    logit_side: int
    frame: str = SQUARE
    resampling: str = BILINEAR

    def __post_init__(self) -> None:
        """Refuse a geometry that no encoder can have.

        Raises:
            ValueError: If frame or resampling are unknown, or a grid is empty or does not divide the image.
        """
        if self.resampling not in RESAMPLINGS:
            raise ValueError(f"resampling: expected one of {', '.join(RESAMPLINGS)}, found {self.resampling!r}")
        if self.frame not in FRAMES:
            raise ValueError(f"frame: expected one of {', '.join(FRAMES)}, found {self.frame!r}; add it to FRAMES")
        if self.embedding_side < 1 or self.image_side % self.embedding_side:
            raise ValueError(
                f"embedding_side: expected a divisor of image_side {self.image_side}, found {self.embedding_side}; "
                "choose an image side that is a multiple of the encoder's stride"
            )

    @classmethod
    def of_stride(cls, image_side: int, stride: int, frame: str = SQUARE, resampling: str = BILINEAR) -> "Geometry":
        """Return the geometry of a model with an encoder of this stride and SAM's mask decoder.

        Args:
            image_side: S, model pixels.
            stride: Model pixels along each side of an embedding cell.
            frame: A key of `FRAMES`.
            resampling: One of `RESAMPLINGS`.

        Raises:
            ValueError: If the stride does not divide the image side, or frame or resampling are unknown.
        """
        cells, rest = divmod(image_side, stride)
        if rest:
            raise ValueError(f"image_side: expected a multiple of the stride {stride}, found {image_side}; choose one")
        return cls(image_side, cells, DECODER_UPSCALING * cells, frame, resampling)

    @property
    def embedding_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image's embedding."""
        return (EMBEDDING_CHANNELS, self.embedding_side, self.embedding_side)

    def content(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width in model pixels of a slice of native `height` and `width`."""
        return FRAMES[self.frame](height, width, self.image_side)
