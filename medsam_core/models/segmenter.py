"""The segmentation model, student or teacher: image encoder, SAM prompt encoder, SAM mask decoder.

What belongs here: putting the parts together, and the last step of preprocessing, which differs between students and
teachers. Not here: bringing slices to the model frame (`preprocessing`), files (`checkpoints`), training.

Legend: B images, K boxes an image; S, h = w and 4 h = 4 w: sides of image, embedding and logits (`Geometry`).
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from medsam_core.models.config import Architecture, StudentConfig, TeacherConfig
from medsam_core.models.encoders.base import load_encoder
from medsam_core.models.encoders.registry import InputKind
from medsam_core.models.sam import MaskDecoder, PromptEncoder
from medsam_core.models.torch_model import TorchModel

PixelStatistics = tuple[Sequence[float], Sequence[float]]


class Segmenter(nn.Module):
    """A model that predicts a mask for each box on an image.

    State-dict keys begin with `image_encoder.`, `prompt_encoder.`, `mask_decoder.`; on standardised input they also
    hold `pixel_mean` and `pixel_std`, (3,) in units of the full grey range (0 to 1).

    Args:
        architecture: Names the encoder and its settings.
        statistics: Mean and standard deviation per channel in [0, 1] units; for encoders on standardised input only.

    Raises:
        ValueError: If such an encoder has no usable statistics, or another encoder is given some.
    """

    def __init__(self, architecture: Architecture, statistics: PixelStatistics | None = None) -> None:
        super().__init__()
        self.architecture = architecture
        self.geometry = architecture.geometry
        self.image_size = self.geometry.image_side
        self.input_kind: InputKind = architecture.encoder.input_kind
        self._encoder = load_encoder(architecture.encoder)
        self.image_encoder = self._encoder.build(self.image_size, architecture.encoder_settings)
        self.prompt_encoder = PromptEncoder(self.geometry.image_side, self.geometry.embedding_side)
        self.mask_decoder = MaskDecoder()
        self.pixel_mean: Tensor | None
        self.pixel_std: Tensor | None
        self._register_statistics(statistics)

    def _register_statistics(self, statistics: PixelStatistics | None) -> None:
        if (statistics is not None) != (self.input_kind == "standardised"):
            raise ValueError(
                f"expected pixel statistics for standardised input and none for other input, found {statistics} for "
                f"{self.input_kind!r}; use build_student or build_teacher"
            )
        mean, std = (None, None) if statistics is None else (torch.tensor(part) for part in statistics)
        for name, value in (("mean", mean), ("std", std)):
            if value is not None and value.shape != (3,):
                raise ValueError(f"pixel {name}: expected 3 values, one a channel, found shape {tuple(value.shape)}")
        if std is not None and not bool((std > 0).all()):
            raise ValueError(f"pixel std: expected positive values, found {std.tolist()}; compute them from data")
        self.register_buffer("pixel_mean", mean)
        self.register_buffer("pixel_std", std)

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise raw images as the encoder was trained (`docs/adr/0003`).

        Args:
            images: (B, 3, S, S) float32, raw grey values 0 to 255, not rounded.

        Returns:
            (B, 3, S, S): `(x / 255 - mean) / std` where input is standardised; else each image's own min-max over
            channels and pixels to [0, 1], and zeros where its range is below 1 grey value.
        """
        if self.pixel_mean is not None and self.pixel_std is not None:
            return (images / 255 - self.pixel_mean.view(3, 1, 1)) / self.pixel_std.view(3, 1, 1)
        low = images.amin(dim=(1, 2, 3), keepdim=True)
        span = images.amax(dim=(1, 2, 3), keepdim=True) - low
        return torch.where(span < 1, torch.zeros_like(images), (images - low) / span.clamp(min=1))

    def encode(self, images: Tensor) -> Tensor:
        """Normalise and encode raw images (B, 3, S, S), 0 to 255, to embeddings (B, 256, h, w).

        Raises:
            ValueError: If the images are not in the model frame.
        """
        if images.ndim != 4 or images.shape[1:] != (3, self.image_size, self.image_size):
            expected = f"(B, 3, {self.image_size}, {self.image_size})"
            raise ValueError(f"images: expected {expected}, found {tuple(images.shape)}; resize to the model frame")
        normalised = self.normalise(images)
        if images.device.type != "cpu" or self.training or torch.is_grad_enabled():
            embeddings: Tensor = self.image_encoder(normalised)
            return embeddings
        # One image at a time fits a processor's caches better; its convolutions are fastest with channels last.
        ones = torch.split(normalised.contiguous(memory_format=torch.channels_last), 1)
        return torch.cat([self.image_encoder(one).contiguous() for one in ones])

    def decode(self, embeddings: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Decode boxes against their image's embedding, a single mask each.

        Args:
            embeddings: (B, 256, h, w).
            boxes: (B, K, 4) float, xyxy_px, half-open, in the model frame.

        Returns:
            Logits (B, K, 4h, 4w) and expected IoUs (B, K).

        Raises:
            ValueError: If the shapes do not match.
        """
        shape = self.geometry.embedding_shape
        if embeddings.ndim != 4 or embeddings.shape[1:] != shape:
            expected = f"(B, {', '.join(map(str, shape))})"
            raise ValueError(f"embeddings: expected {expected}, found {tuple(embeddings.shape)}; encode first")
        if boxes.ndim != 3 or boxes.shape[0] != embeddings.shape[0] or boxes.shape[2] != 4:
            raise ValueError(f"boxes: expected ({len(embeddings)}, K, 4), found {tuple(boxes.shape)}")
        sparse, dense = self.prompt_encoder(boxes.flatten(0, 1))
        positions = self.prompt_encoder.dense_positions()
        logits, iou = self.mask_decoder(embeddings, positions, sparse, dense)
        per_image = boxes.shape[:2]
        return logits.squeeze(1).unflatten(0, per_image), iou.squeeze(1).unflatten(0, per_image)

    def forward(self, images: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Encode raw images (B, 3, S, S) and decode boxes (B, K, 4); returns as `decode`."""
        return self.decode(self.encode(images), boxes)

    @property
    def last_norm(self) -> nn.Module | None:
        """The norm that ends the encoder, where it is known to have one."""
        return self._encoder.last_norm(self.image_encoder)

    def promptable(self) -> TorchModel:
        """Return the model behind the contract in numpy with which cases are predicted; it has to be in eval mode."""
        return TorchModel(self)

    def resized(self, image_size: int) -> Self:
        """Return a copy for another image size: position embeddings are resized to its grid, all else is equal.

        Args:
            image_size: Side of the new model frame in pixels, a multiple of 64.
        """
        values = {**self.architecture.model_dump(), "image_size": image_size}
        architecture = type(self.architecture).model_validate(values)
        statistics = None
        if self.pixel_mean is not None and self.pixel_std is not None:
            statistics = (self.pixel_mean.tolist(), self.pixel_std.tolist())
        copy = type(self)(architecture, statistics)
        copy.load_state_dict(self._encoder.resize_positions(self.state_dict(), copy.state_dict()))
        return copy.to(next(self.parameters()).device).train(self.training)


def _seeded(architecture: Architecture, seed: int, statistics: PixelStatistics | None) -> Segmenter:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Segmenter(architecture, statistics)


def build_student(config: StudentConfig, mean: Sequence[float], std: Sequence[float], seed: int) -> Segmenter:
    """Build an untrained student; equal arguments give equal weights, and the global random state is left alone.

    Args:
        config: Architecture.
        mean: (3,) pixel mean per channel, in [0, 1] units; read where the encoder's input is standardised.
        std: (3,) pixel standard deviation per channel, in [0, 1] units, likewise.
        seed: Seed of the weights.
    """
    return _seeded(config, seed, (mean, std) if config.encoder.input_kind == "standardised" else None)


def build_teacher(config: TeacherConfig, seed: int = 0) -> Segmenter:
    """Build a teacher with fresh weights, to be trained (stand-in) or loaded; seeded as `build_student`."""
    return _seeded(config, seed, None)


def init_decoder_from(student: Segmenter, teacher: Segmenter) -> None:
    """Copy the teacher's prompt encoder and mask decoder, buffers included, into the student: the paper's start."""
    student.prompt_encoder.load_state_dict(teacher.prompt_encoder.state_dict())
    student.mask_decoder.load_state_dict(teacher.mask_decoder.state_dict())


def init_last_norm_from(student: Segmenter, teacher: Segmenter) -> None:
    """Start the norm that ends the student's encoder from the teacher's, so that its channels have their scale.

    Raises:
        ValueError: If the encoder of either is not known to end in such a norm.
    """
    own, given = student.last_norm, teacher.last_norm
    if own is None or given is None:
        lacking = (student if own is None else teacher).architecture.encoder.name
        raise ValueError(f"{lacking}: expected an encoder that names its last norm (`Encoder.last_norm`), found none")
    with torch.no_grad():
        for name in ("weight", "bias"):
            own.get_parameter(name).copy_(given.get_parameter(name))


def same_encoder(models: Sequence[Segmenter]) -> bool:
    """Return whether all models give the same embedding for every image: equal architectures and encoder weights."""
    first, *others = models
    return all(_encodes_as(other, first) for other in others)


def _encodes_as(model: Segmenter, other: Segmenter) -> bool:
    if model.architecture != other.architecture:
        return False
    own, weights = model.state_dict(), other.state_dict()
    named = [name for name in weights if name.startswith(("image_encoder.", "pixel_"))]
    return all(torch.equal(own[name], weights[name]) for name in named)
