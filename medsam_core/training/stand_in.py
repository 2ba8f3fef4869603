"""The shipped stand-in teacher: how it is made, from synthetic data alone.

What belongs here: its recipe. Not here: the data (`medsam_core.synthetic`), the loop (`medsam_core.training`), or how a
profile trains it further on real cases (`pipelines.teacher.tasks`).
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from medsam_core.base.config import AugmentationConfig, OptimiserConfig, StageConfig
from medsam_core.base.data import LabelMap, SliceTable
from medsam_core.imaging.prompts import tight_boxes
from medsam_core.learning.stages import FINETUNING
from medsam_core.models.checkpoints import load_model, save_model
from medsam_core.models.config import TeacherConfig
from medsam_core.models.segmenter import build_teacher
from medsam_core.planning.plan import Plan
from medsam_core.synthetic import MODALITIES, sample_cases
from medsam_core.training.loop import LoopOptions, train
from medsam_core.training.run import TrainingRun

ARCHITECTURE = TeacherConfig(kind="stand_in", image_size=128, embed_dim=192, depth=6, num_heads=6)
"""7.5 million parameters, so that float16 weights stay below 16 MB."""

DATA_SEED = 1_000_003
"""Of the cases it learns from; the sample profile's cases have another."""

CASES_PER_MODALITY = 160
VOLUMES_PER_MODALITY = 16

RECIPE = StageConfig(
    epochs=7,
    microbatch_size=22,
    microbatches_per_step=1,
    epoch_slots=22 * 180,
    prompts_per_slot=4,
    box_jitter_px=3,
    mask_distillation=False,
    augmentation=AugmentationConfig(crop=0.4, crop_scale=(0.4, 1.0), rotate_right_angles=True),
    optimiser=OptimiserConfig(
        learning_rate=5e-4,
        weight_decay=0.02,
        clip_norm=1.0,
        warmup_epochs=1,
        warmup_learning_rate=2e-4,
        decay_epochs=(5, 6),
        decay_factor=0.3,
    ),
)


class MemoryReader:
    """Slices held in memory, read by row."""

    def __init__(self, slices: Sequence[tuple[npt.NDArray[np.uint8], LabelMap]]) -> None:
        self._slices = slices

    def read(self, row: int) -> tuple[npt.NDArray[np.uint8], LabelMap | None]:
        """Return the image and label map of a row."""
        return self._slices[row]


def table_of(slices: Sequence[tuple[npt.NDArray[np.uint8], LabelMap]], modality: Sequence[int]) -> SliceTable:
    """Describe slices as the training plan reads them.

    Args:
        slices: Image and label map of each.
        modality: Index into `MODALITIES` of each.
    """
    found = [tight_boxes(mask) for _, mask in slices]
    areas = [np.bincount(mask.reshape(-1))[labels] for (_, mask), (labels, _) in zip(slices, found, strict=True)]
    return SliceTable(
        modalities=MODALITIES,
        modality=np.array(modality, np.int8),
        height=np.array([image.shape[0] for image, _ in slices], np.int32),
        width=np.array([image.shape[1] for image, _ in slices], np.int32),
        label_start=np.cumsum([0, *(len(labels) for labels, _ in found)]),
        label_id=np.concatenate([labels for labels, _ in found]).astype(np.int32),
        label_area=np.concatenate(areas).astype(np.int64),
        label_box=np.concatenate([boxes for _, boxes in found]).astype(np.int32),
    )


def synthetic_slices(
    seed: int, cases: int, volumes: int
) -> tuple[list[tuple[npt.NDArray[np.uint8], LabelMap]], list[int]]:
    """Return the slices of synthetic cases and the index of each one's modality."""
    slices: list[tuple[npt.NDArray[np.uint8], LabelMap]] = []
    modality: list[int] = []
    for case in sample_cases(seed, cases, volumes):
        imgs, gts = case.arrays["imgs"], case.arrays["gts"]
        own = list(zip(imgs, gts, strict=True)) if gts.ndim == 3 else [(imgs, gts)]
        slices += own
        modality += [MODALITIES.index(case.path.split("/", 1)[0])] * len(own)
    return slices, modality


def make_stand_in(
    output: Path,
    work: Path,
    log: Callable[[str], None],
    *,
    recipe: StageConfig = RECIPE,
    cases: int = CASES_PER_MODALITY,
    volumes: int = VOLUMES_PER_MODALITY,
) -> None:
    """Make the stand-in teacher: a fine-tuning without a teacher, on synthetic ground truth.

    Args:
        output: safetensors file to write, float16.
        work: Folder of checkpoints; a killed run is resumed from it.
        log: Where progress is said.
        recipe: How it learns.
        cases: Flat cases of each modality.
        volumes: Volumes of each volumetric modality.
    """
    slices, modality = synthetic_slices(DATA_SEED, cases, volumes)
    log(f"{len(slices)} synthetic slices")
    plan = Plan.build(table_of(slices, modality), recipe, FINETUNING, ARCHITECTURE.image_size, seed=0)

    def on_metrics(step: int, values: dict[str, float]) -> None:
        if step % 50 == 0:
            log(f"step {step} of {plan.total_steps}: " + ", ".join(f"{k} {v:.4f}" for k, v in values.items()))

    teacher = build_teacher(ARCHITECTURE, seed=0)
    run = TrainingRun(plan=plan, config=recipe, reader=MemoryReader(slices), teacher=None, out=work)
    result = train(teacher, run, on_metrics=on_metrics, options=LoopOptions(checkpoint_steps=100))
    metadata = {"role": "teacher", "made_by": "medsam make-teacher", "steps": str(result.steps)}
    save_model(output, load_model(result.weights), metadata, dtype=torch.float16)
