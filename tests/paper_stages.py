"""The stages of the paper's Tables 2 and 3, stated once more beside profile `paper`. Not here: profiles."""

from medsam_core.base.config import AugmentationConfig, OptimiserConfig, StageConfig

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
