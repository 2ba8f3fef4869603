"""The proposed model and its ablations: a table with one row for each; assets are made from the rows.

What belongs here: the changes of each variant. Not here: training.

The paper's Table 4: ablation 1 drops the mask distillation of fine-tuning; ablation 2 drops "aggressive augmentation"
during distillation. The paper's text allows two readings of the latter, so both are here. Ablations stop at
`Profile.ablation_epochs` of fine-tuning and are compared with the proposed model at that epoch. The row `pyramid` is
ours, not the paper's: the other neck on the same grid (`docs/adr/0023`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from medsam_core.base.config import StageConfig
from medsam_core.learning.stages import Stage
from medsam_core.models.config import StudentConfig
from medsam_core.models.encoders.registry import PYRAMID
from pipelines.base.profile import Profile, ProfileError


@dataclass(frozen=True)
class Variant:
    """One variant.

    Attributes:
        name: Key prefix of its assets.
        description: Description on the page.
        augmentation: Changes to the augmentation of distillation; a variant without changes shares the plan and the
            teacher cache of the proposed model, and its distilled encoder unless the student changes.
        neck: The neck of the student, on the grid that the profile's student has; None is the profile's.
        mask_distillation: False drops the teacher's masks from fine-tuning.
        is_ablation: True stops fine-tuning at the ablation epoch.
    """

    name: str
    description: str
    augmentation: Mapping[str, object] = field(default_factory=dict)
    neck: str | None = None
    mask_distillation: bool = True
    is_ablation: bool = True

    @property
    def owns_plan(self) -> bool:
        """True if the variant's distillation shows other images, so that its plan and teacher cache are its own."""
        return bool(self.augmentation) or not self.is_ablation

    @property
    def owns_distillation(self) -> bool:
        """True if the variant distils its own encoder."""
        return self.owns_plan or self.neck is not None

    def student(self, profile: Profile) -> StudentConfig:
        """Return the student of this variant.

        Raises:
            ProfileError: If the profile's student has no neck to choose; the message names both.
        """
        own = profile.student
        if self.neck in (None, own.encoder_settings.get("neck")):
            return own
        if "neck" not in own.encoder.settings:
            raise ProfileError(
                f"variant {self.name}: expected a student.backbone with a choice of necks, found {own.backbone} in "
                f"profile {profile.name}; leave this variant out, or choose a RepViT"
            )
        return StudentConfig.model_validate({**own.model_dump(), "neck": self.neck, "stride": own.encoder_stride})

    def distillation(self, profile: Profile) -> StageConfig:
        """Return the distillation stage of this variant."""
        augmentation = profile.distillation.augmentation.model_copy(update=dict(self.augmentation))
        return profile.distillation.model_copy(update={"augmentation": augmentation})

    def finetuning(self, profile: Profile) -> StageConfig:
        """Return the fine-tuning stage of this variant."""
        epochs = profile.ablation_epochs if self.is_ablation else profile.finetuning.epochs
        masks = self.mask_distillation and profile.finetuning.mask_distillation
        return profile.finetuning.model_copy(update={"epochs": epochs, "mask_distillation": masks})

    def stage_config(self, profile: Profile, stage: Stage) -> StageConfig:
        """Return a stage of this variant."""
        return {"distillation": self.distillation, "finetuning": self.finetuning}[stage.name](profile)


PROPOSED = Variant("proposed", "The paper's model: aggressive distillation, then fine-tuning.", is_ablation=False)

ABLATIONS: tuple[Variant, ...] = (
    Variant(
        "no_mask_distillation",
        "Ablation 1: fine-tuning without the teacher's masks; shares the proposed distilled encoder.",
        mask_distillation=False,
    ),
    Variant(
        "no_mixing",
        "Ablation 2, first reading: distillation without CutMix and MixPatch.",
        augmentation={"mixing": ("none",)},
    ),
    Variant(
        "no_distillation_augmentation",
        "Ablation 2, second reading: distillation without any augmentation.",
        augmentation={
            "mixing": ("none",),
            "crop": 0.0,
            "horizontal_flip": 0.0,
            "vertical_flip": 0.0,
            "rotate_right_angles": False,
        },
    ),
    Variant(
        "pyramid",
        "Not in the paper: all stages of RepViT reach the embedding, on the same grid.",
        neck=PYRAMID,
    ),
)

VARIANTS: tuple[Variant, ...] = (PROPOSED, *ABLATIONS)

PLANNERS: tuple[Variant, ...] = tuple(variant for variant in VARIANTS if variant.owns_plan)
"""Variants whose distillation has a plan and a teacher cache of its own."""

OWNERS: tuple[Variant, ...] = tuple(variant for variant in VARIANTS if variant.owns_distillation)
"""Variants that distil their own encoder."""
