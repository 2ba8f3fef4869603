"""The settings of models. What belongs here: the frozen settings of students and teachers, and their limits.

Not here: which encoders there are (`encoders.registry`), stages (`medsam_core.base.config`). [P]: stated by the paper.
"""

from abc import abstractmethod
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from medsam_core.base.config import Config, Positive
from medsam_core.base.geometry import Geometry
from medsam_core.models.encoders.registry import PYRAMID, EncoderSpec, Setting, encoder_spec


def _known_encoder(name: str) -> str:
    return encoder_spec(name).name


EncoderName = Annotated[str, AfterValidator(_known_encoder)]


class Architecture(Config):
    """Settings of student and teacher alike: an encoder by name, the side of its square input, its settings."""

    later_settings: ClassVar[tuple[str, ...]] = ("frame", "resampling", "settings", "neck", "stride")

    image_size: Annotated[int, Field(ge=64, multiple_of=64)] = 1024
    """Side S of the square model frame in pixels; 1024 [P]."""
    frame: str | None = None
    """How slices are brought into the square, a key of `medsam_core.base.geometry.FRAMES`; None: the encoder's own."""
    resampling: str | None = None
    """How their pixels are resized, one of `medsam_core.base.geometry.RESAMPLINGS`; None: the encoder's own."""
    settings: dict[str, Setting] = Field(default={})
    """Settings of the encoder, by names of its spec; those not given have the spec's defaults."""

    @property
    @abstractmethod
    def encoder(self) -> EncoderSpec:
        """The image encoder."""

    @property
    def geometry(self) -> Geometry:
        """Sides of image, embedding and logits, frame and resampling."""
        return self.encoder.geometry(self.image_size, self.frame, self.encoder_settings, self.resampling)

    @property
    def encoder_stride(self) -> int:
        """Model pixels along each side of an embedding cell."""
        return self.encoder.stride_with(self.encoder_settings)

    @property
    def encoder_settings(self) -> dict[str, Setting]:
        """A value for each setting of the encoder."""
        fields = type(self).model_fields
        own = {name: getattr(self, name) for name in self.encoder.settings if name in fields}
        given = {name: value for name, value in own.items() if value is not None}
        return {**self.encoder.settings, **given, **self.settings}

    @model_validator(mode="after")
    def _fits_the_encoder(self) -> Self:
        spec, own = self.encoder, type(self).model_fields
        known = {name: type(default) for name, default in spec.settings.items() if name not in own}
        found = {name: type(value) for name, value in self.settings.items()}
        if not found.items() <= known.items():
            expected = ", ".join(f"{name} ({kind.__name__})" for name, kind in known.items()) or "none"
            raise ValueError(f"settings: expected those of {spec.name}: {expected}, found {self.settings}")
        _ = self.geometry
        return self


class StudentConfig(Architecture):
    """The student's architecture."""

    backbone: EncoderName = "repvit_m1_1"
    """Its encoder; the paper uses RepViT-M1.1 [P]."""
    neck: Literal["plain", "pyramid"] = "plain"
    """`plain` sees the last stage alone [P]; `pyramid` all four, at a finer stride. For encoders that have a choice."""
    stride: Literal[4, 8, 16] | None = None
    """Model pixels along each side of an embedding cell, like the teacher's; None: 16 for plain, 4 for pyramid."""

    @property
    def encoder(self) -> EncoderSpec:
        """The image encoder."""
        return encoder_spec(self.backbone)

    @property
    def starts_from_last_norm(self) -> bool:
        """Whether the encoder's last norm starts from the teacher's; the paper's own neck starts from fresh weights."""
        return self.neck == PYRAMID

    @model_validator(mode="after")
    def _neck_fits_the_encoder(self) -> Self:
        known, fields = self.encoder.settings, type(self).model_fields
        for name in ("neck", "stride"):
            if name not in known and getattr(self, name) != fields[name].default:
                raise ValueError(
                    f"{name}: expected none with backbone {self.backbone}, which has no such choice, found "
                    f"{getattr(self, name)!r}; remove it, or choose a RepViT"
                )
        return self


class TeacherConfig(Architecture):
    """The teacher's architecture; image side, embedding side and frame are the student's."""

    kind: EncoderName = "medsam_vit_b"
    """`medsam_vit_b` is MedSAM; `stand_in` is a small ViT with the same prompt encoder and mask decoder."""
    embed_dim: Positive = 192
    """Width of the stand-in's encoder; ignored by others."""
    depth: Positive = 6
    """Blocks of the stand-in's encoder; ignored by others."""
    num_heads: Positive = 6
    """Attention heads of the stand-in's encoder; ignored by others."""

    @property
    def encoder(self) -> EncoderSpec:
        """The image encoder."""
        return encoder_spec(self.kind)

    @model_validator(mode="after")
    def _needs_no_statistics(self) -> Self:
        if self.encoder.input_kind != "min_max":
            raise ValueError(
                f"kind: expected an encoder on min_max input, found {self.kind} on {self.encoder.input_kind} input; "
                "a teacher's weights come without the statistics of this data"
            )
        return self
