"""A tiny data set, configurations and models for tests of training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from medsam_core.base.config import AugmentationConfig, OptimiserConfig, StageConfig
from medsam_core.base.data import SliceTable
from medsam_core.base.geometry import Geometry
from medsam_core.learning.stages import DISTILLATION, Stage
from medsam_core.learning.teachers import OnlineTeacher, TeacherAnswers
from medsam_core.models.config import StudentConfig, TeacherConfig
from medsam_core.models.segmenter import Segmenter, build_student, build_teacher
from medsam_core.planning.plan import Plan
from medsam_core.training.loop import train
from medsam_core.training.run import TrainingRun, TrainResult

SIZE = 64
GEOMETRY = Geometry.of_stride(SIZE, 16)
"""The smallest model frame."""

N_SLICES = 12


class Reader:
    """Twelve slices of 40 by 48 pixels, each with a bright disc (label 1) and a dark square (label 5)."""

    def read(self, row: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any] | None]:
        rng = np.random.default_rng(row)
        image = rng.integers(90, 130, (40, 48), dtype=np.uint8)
        y, x = np.mgrid[:40, :48]
        disc = (y - 12 - row % 4) ** 2 + (x - 14 - row % 5) ** 2 < 64
        square = (abs(y - 30) < 5) & (abs(x - 36) < 6)
        image[disc], image[square] = 230, 10
        return image, (disc * 1 + square * 5).astype(np.uint8)


def slice_table() -> SliceTable:
    boxes = []
    for row in range(N_SLICES):
        mask = Reader().read(row)[1]
        assert mask is not None
        for label in (1, 5):
            ys, xs = np.nonzero(mask == label)
            boxes.append((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))
    return SliceTable(
        modalities=("CT", "MR"),
        modality=(np.arange(N_SLICES) % 2).astype(np.int8),
        height=np.full(N_SLICES, 40, np.int32),
        width=np.full(N_SLICES, 48, np.int32),
        label_start=np.arange(0, 2 * N_SLICES + 1, 2),
        label_id=np.tile(np.array([1, 5], np.int32), N_SLICES),
        label_area=np.full(2 * N_SLICES, 100),
        label_box=np.array(boxes, np.int32),
    )


def stage_config(stage: Stage, **changes: Any) -> StageConfig:
    mixing = ("mixpatch", "cutmix") if stage is DISTILLATION else ("none",)
    return StageConfig(
        **{
            "epochs": 2,
            "microbatch_size": 2,
            "microbatches_per_step": 2,
            "epoch_slots": 12,
            "prompts_per_slot": 2,
            "augmentation": AugmentationConfig(mixing=mixing, crop=0.5 if stage is DISTILLATION else 0.0),
            "optimiser": OptimiserConfig(learning_rate=1e-3, warmup_epochs=1, warmup_learning_rate=5e-4),
            **changes,
        }
    )


def build_plan(stage: Stage, config: StageConfig) -> Plan:
    return Plan.build(slice_table(), config, stage, SIZE, seed=3)


def student() -> Segmenter:
    config = StudentConfig(backbone="repvit_m0_9", image_size=SIZE)
    return build_student(config, mean=(0.4,) * 3, std=(0.2,) * 3, seed=1)


def stand_in(seed: int = 2) -> Segmenter:
    config = TeacherConfig(kind="stand_in", image_size=SIZE, embed_dim=24, depth=1, num_heads=2)
    return build_teacher(config, seed=seed)


def teacher() -> TeacherAnswers:
    return OnlineTeacher(stand_in())


def same_weights(a: Path, b: Path) -> bool:
    """Whether two files hold the same bytes, which equal weights and headers have."""
    return a.read_bytes() == b.read_bytes()


def states_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


class SmallEncoder(nn.Sequential):
    """A stride-16 encoder with batch norm, a stand-in for RepViT where only the loop is tested."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 6, 8, stride=8),
            nn.BatchNorm2d(6),
            nn.GELU(),
            nn.Conv2d(6, 256, 2, stride=2),
            nn.BatchNorm2d(256),
        )


def small_student(seed: int = 1) -> Segmenter:
    """A model with batch norm whose steps take milliseconds; its files can be written but not rebuilt."""
    model = stand_in(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.image_encoder = SmallEncoder()
    return model


class KilledError(Exception):
    """Stands for whatever ends a trainer without warning."""


def training_run(stage: Stage, out: Path, **changes: Any) -> TrainingRun:
    """Return a run of the tiny data set; `changes` are its fields."""
    config = changes.pop("config", stage_config(stage))
    values = {"plan": build_plan(stage, config), "config": config, "reader": Reader(), "teacher": teacher(), **changes}
    return TrainingRun(out=out, **values)


def run_stage(stage: Stage, out: Path, model: Segmenter | None = None, **changes: Any) -> TrainResult:
    """Train; `changes` are fields of the run, and what else `train` takes."""
    own = {name: changes.pop(name) for name in list(changes) if name in TrainingRun.__dataclass_fields__}
    return train(small_student() if model is None else model, training_run(stage, out, **own), **changes)


def kill_at(step: int) -> Callable[[int, dict[str, float]], None]:
    def on_metrics(now: int, _values: dict[str, float]) -> None:
        if now == step:
            raise KilledError

    return on_metrics


def read_log(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
