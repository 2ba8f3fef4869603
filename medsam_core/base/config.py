"""The settings of a training stage. What belongs here: frozen settings and their limits.

Not here: paths, executors, settings of one machine. Sources: [P] stated by the paper, [C] only in its public code.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self, TypeVar

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

T = TypeVar("T")

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]

MixKind = Literal["none", "mixpatch", "cutmix"]
DiceKind = Literal["squared", "linear"]

PrecisionSetting = Literal["auto", "float32", "bfloat16"]
"""The number format of training: one that is stated, or the one that is measured to be faster."""

MIX_KINDS: tuple[MixKind, ...] = ("none", "mixpatch", "cutmix")
"""Kinds of mixing; a plan's microbatch stores the index."""


class Config(BaseModel):
    """Base of all settings: frozen, and an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    later_settings: ClassVar[tuple[str, ...]] = ()
    """Settings that earlier versions did not have: left out of dumps, and so of fingerprints, at the default."""

    @model_serializer(mode="wrap")
    def _as_earlier_versions(self, dump: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Leave out what earlier versions did not have where it is at its default, so that what they made is found."""
        values, fields = dump(self), type(self).model_fields
        later = self.later_settings
        kept = {name: value for name, value in values.items() if name not in later or value != fields[name].default}
        return {self.stored_name(name): value for name, value in kept.items()}

    @classmethod
    def stored_name(cls, name: str) -> str:
        """Return the name under which a setting is dumped; by default its own."""
        return name


class AugmentationConfig(Config):
    """Geometric augmentation of a slot and mixing inside a microbatch."""

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
    """Each microbatch draws one of these with equal probability [P, 1/3 each C]."""
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


STORED_NAMES: Mapping[str, str] = {"microbatch_size": "group_size", "microbatches_per_step": "groups_per_step"}
"""Setting of a stage -> its earlier name, which files and fingerprints keep, so that what was made before is found."""


def with_present_names(settings: Mapping[str, T]) -> dict[str, T]:
    """Return a stage's settings with earlier names replaced, except where a setting is given under both names."""
    present = {old: new for new, old in STORED_NAMES.items() if new not in settings}
    return {present.get(name, name): value for name, value in settings.items()}


@dataclass(frozen=True)
class BoxJitter:
    """How far each side of a tight box may move.

    Attributes:
        px: Native pixels outward.
        permille: Thousandths of the box's own side, on top of `px`, outward.
        inward: Whether the share moves a side inward as often as outward.
    """

    px: int = 0
    permille: int = 0
    inward: bool = False


class StageConfig(Config):
    """Settings of one training stage: what is drawn, how it is augmented and how the model is trained."""

    later_settings: ClassVar[tuple[str, ...]] = (
        "box_jitter_share",
        "box_jitter_inward",
        "mask_distillation_rule",
        "dice",
        "bce_weight",
    )

    epochs: Positive = 9
    microbatch_size: Positive = Field(10, validation_alias=AliasChoices("microbatch_size", "group_size"))
    """B: slots of a microbatch, which is the batch of one device [P: batch 10]."""
    microbatches_per_step: Positive = Field(
        3, validation_alias=AliasChoices("microbatches_per_step", "groups_per_step")
    )
    """Microbatches of an optimiser step [P: 3 GPUs]."""
    epoch_slots: Positive | None = None
    """Slots of an epoch, rounded up to whole steps; None: the number of drawable slices [C]."""
    cached_epochs: Positive | None = None
    """P: epoch e uses the plan of epoch e mod P again; None: every epoch has its own plan."""
    prompts_per_slot: Positive = 1
    """K: labels drawn for a slot, all decoded against one encoding [P: one]. Distillation draws none."""
    box_jitter_px: Annotated[int, Field(ge=0)] = 5
    """Each side of the tight box moves outward by 0 to this many native pixels [C]."""
    box_jitter_share: Annotated[float, Field(ge=0.0, le=0.4)] = 0.0
    """Each side moves outward, on top, by 0 to this share of the box's own side, in thousandths and whole pixels."""
    box_jitter_inward: bool = False
    """Whether `box_jitter_share` also moves sides inward."""
    augmentation: AugmentationConfig = AugmentationConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    mask_distillation: bool = True
    """Fine-tuning only: also learn the teacher's mask probabilities; off in ablation 1 [P]."""
    mask_distillation_rule: Literal["always", "validation"] = "always"
    """`validation`: ground truth takes the place of the teacher's masks in every modality where, on validation
    patients, the teacher is not better than the ellipse inscribed in the box."""
    dice: DiceKind = "squared"
    """Denominator of the soft Dice of masks: squared probabilities [P], under which an object that cannot be made
    out is answered with nothing, or probabilities (`linear`), under which it is filled as far as that pays."""
    bce_weight: Annotated[float, Field(ge=0.0)] = 1.0
    """Weight of the cross-entropy against ground truth beside the Dice term [P: 1]."""

    @classmethod
    def stored_name(cls, name: str) -> str:
        """Return the earlier name of a setting that has one."""
        return STORED_NAMES.get(name, name)

    @property
    def box_jitter(self) -> BoxJitter:
        """How far each side of a box may move."""
        return BoxJitter(self.box_jitter_px, round(self.box_jitter_share * 1000), self.box_jitter_inward)

    @property
    def plan_epochs(self) -> int:
        """Distinct epochs of the plan, P."""
        return min(self.cached_epochs or self.epochs, self.epochs)
