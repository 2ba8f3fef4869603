"""What a model, a stage and an evaluation are made of. What belongs here: frozen settings and their limits.

Not here: paths, executors, anything of one machine. Sources: [P] stated by the paper, [C] only in its public code.
"""

from abc import abstractmethod
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from medsam_core.geometry import Geometry
from medsam_core.models.encoders.registry import EncoderSpec, Setting, encoder_spec

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]

MixKind = Literal["none", "mixpatch", "cutmix"]


class Config(BaseModel):
    """Base of all settings: frozen, and an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _known_encoder(name: str) -> str:
    return encoder_spec(name).name


EncoderName = Annotated[str, AfterValidator(_known_encoder)]


class Architecture(Config):
    """What student and teacher have in common: an encoder by name, the side of its square input, its settings."""

    image_size: Annotated[int, Field(ge=64, multiple_of=64)] = 1024
    """Side S of the square model frame in pixels; 1024 [P]."""
    frame: str | None = None
    """How slices are brought into the square, a key of `geometry.FRAMES`; None: as the encoder's spec says."""
    settings: dict[str, Setting] = Field(default={})
    """Settings of the encoder, of those that its spec names; what is not named here has the spec's default."""

    @property
    @abstractmethod
    def encoder(self) -> EncoderSpec:
        """The image encoder."""

    @property
    def geometry(self) -> Geometry:
        """Sides of image, embedding and logits, and the frame."""
        return self.encoder.geometry(self.image_size, self.frame)

    @property
    def encoder_settings(self) -> dict[str, Setting]:
        """A value for each setting of the encoder."""
        own = {name: getattr(self, name) for name in self.encoder.settings if name in type(self).model_fields}
        return {**self.encoder.settings, **own, **self.settings}

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

    @model_serializer(mode="wrap")
    def _without_defaults_of_later_versions(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Leave out what models of earlier versions did not have, so that their fingerprints stay as they are."""
        values: dict[str, object] = handler(self)
        return {name: value for name, value in values.items() if value or name not in ("frame", "settings")}


class StudentConfig(Architecture):
    """The student's architecture."""

    backbone: EncoderName = "repvit_m1_1"
    """Its encoder; the paper uses RepViT-M1.1 [P]."""

    @property
    def encoder(self) -> EncoderSpec:
        """The image encoder."""
        return encoder_spec(self.backbone)


class TeacherConfig(Architecture):
    """The teacher's architecture; image side, embedding side and frame are the student's."""

    kind: EncoderName = "medsam_vit_b"
    """`medsam_vit_b` in earnest; `stand_in` is a small ViT with the same prompt encoder and mask decoder."""
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


class AugmentationConfig(Config):
    """Geometric augmentation of a slot and mixing inside a group."""

    horizontal_flip: Probability = 0.5
    vertical_flip: Probability = 0.5
    rotate_right_angles: bool = False
    """Rotation by a random multiple of 90 degrees [C]; off by default."""
    crop: Probability = 0.0
    """Probability that a slot shows a random crop rather than the whole slice; 0.5 in distillation [C]."""
    crop_scale: tuple[float, float] = (0.5, 1.0)
    """Range of the crop's area as a fraction of the slice's [C]."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of the crop's aspect ratio in the square frame [C]."""
    mixing: tuple[MixKind, ...] = ("none",)
    """Each group draws one of these with equal probability [P, 1/3 each C]."""
    mixpatch_grid: Positive = 4
    """MixPatch divides the square frame into this many patches a side [C]."""

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        for name in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name}: expected 0 < low <= high, found ({low}, {high})")
        if self.crop_scale[1] > 1:
            raise ValueError(f"crop_scale: expected at most 1, found {self.crop_scale[1]}")
        if not self.mixing:
            raise ValueError("mixing: expected at least one kind, found none; use ('none',) for no mixing")
        return self


class OptimiserConfig(Config):
    """AdamW and its schedule, which is a function of the epoch alone."""

    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.025
    epsilon: Annotated[float, Field(gt=0)] = 1e-7
    clip_norm: Annotated[float, Field(gt=0)] = 0.2
    """L2 norm to which the gradient is clipped [C]."""
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs at the constant `warmup_learning_rate` [P: one in fine-tuning]."""
    warmup_learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    decay_epochs: tuple[int, ...] = ()
    """The rate is multiplied by `decay_factor` from each of these epochs on."""
    decay_factor: Annotated[float, Field(gt=0, le=1)] = 0.1

    def rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 0."""
        if epoch < self.warmup_epochs:
            return self.warmup_learning_rate
        return self.learning_rate * self.decay_factor ** sum(epoch >= start for start in self.decay_epochs)


class StageConfig(Config):
    """One training stage: how much of what is drawn, how it is augmented, how it is learnt."""

    epochs: Positive = 9
    group_size: Positive = 10
    """Slots of a group, B: what one device takes at a time [P: batch 10]."""
    groups_per_step: Positive = 3
    """Groups of an optimiser step [P: 3 GPUs]."""
    epoch_slots: Positive | None = None
    """Slots of an epoch before rounding up to whole steps; None means as many as drawable slices [C]."""
    cached_epochs: Positive | None = None
    """P: epoch e replays the plan of epoch e mod P; None means all epochs differ."""
    prompts_per_slot: Positive = 1
    """K: labels drawn for a slot, all decoded against one encoding [P: one]. Distillation draws none."""
    box_jitter_px: Annotated[int, Field(ge=0)] = 5
    """Each side of the tight box moves outward by 0 to this many native pixels [C]."""
    augmentation: AugmentationConfig = AugmentationConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    mask_distillation: bool = True
    """Fine-tuning only: also learn the teacher's mask probabilities; off in ablation 1 [P]."""

    @property
    def plan_epochs(self) -> int:
        """Distinct epochs of the plan, P."""
        return min(self.cached_epochs or self.epochs, self.epochs)


PAPER_DISTILLATION = StageConfig(
    augmentation=AugmentationConfig(crop=0.5, mixing=("mixpatch", "cutmix", "none")),
    optimiser=OptimiserConfig(learning_rate=5e-4, weight_decay=0.025),
)
"""Table 3."""

PAPER_FINETUNING = StageConfig(
    augmentation=AugmentationConfig(),
    optimiser=OptimiserConfig(
        learning_rate=1e-3 * 10 * 3 / 256,
        weight_decay=0.01,
        warmup_epochs=1,
        warmup_learning_rate=1e-4,
        decay_epochs=(2,),
        decay_factor=0.1,
    ),
)
"""Table 2."""
