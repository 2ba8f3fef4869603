"""The paper's networks at the paper's size: RepViT-M1.1 learns from ViT-B at 1024 pixels, two steps of each stage.

What belongs here: that the `paper` profile's stages run and train. Not here: that what they learn is good, which takes
the real data and days.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from medsam_core.base.config import StageConfig
from medsam_core.base.data import SliceTable
from medsam_core.imaging.rendering import Microbatch
from medsam_core.learning.questions import Question
from medsam_core.learning.stages import FINETUNING, STAGES, Stage
from medsam_core.learning.teachers import OnlineTeacher
from medsam_core.models.segmenter import Segmenter, build_student, init_decoder_from
from medsam_core.planning.plan import Plan
from medsam_core.training.loop import train
from medsam_core.training.run import TrainingRun
from pipelines.base.profile import load_profile
from pipelines.base.variants import PROPOSED
from tests.teachers import golden_vit_b

pytestmark = pytest.mark.slow

PAPER = load_profile("paper")
SIDE = 200
"""Of the native slice, in pixels."""


class Reader:
    """One slice with a bright disc, label 3."""

    def read(self, row: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any] | None]:
        y, x = np.mgrid[:SIDE, :SIDE]
        disc = (y - 90) ** 2 + (x - 110) ** 2 < 50**2
        noise = np.random.default_rng(row).integers(0, 60, (SIDE, SIDE))
        return (noise + 150 * disc).astype(np.uint8), (3 * disc).astype(np.uint8)


def slice_table() -> SliceTable:
    mask = Reader().read(0)[1]
    assert mask is not None
    ys, xs = np.nonzero(mask)
    return SliceTable(
        modalities=("MR",),
        modality=np.zeros(1, np.int8),
        height=np.full(1, SIDE, np.int32),
        width=np.full(1, SIDE, np.int32),
        label_start=np.array([0, 1]),
        label_id=np.array([3], np.int32),
        label_area=np.array([len(ys)]),
        label_box=np.array([[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]], np.int32),
    )


class RememberingTeacher(OnlineTeacher):
    """Answers once for a slot: both steps replay one slot, and ViT-B takes about a minute an image on one core."""

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__(segmenter)
        self._known: dict[tuple[str, int], Tensor] = {}

    def answer(self, question: Question, first_slot: int, batch: Microbatch) -> Tensor:
        key = (question.kind, first_slot)
        if key not in self._known:
            self._known[key] = super().answer(question, first_slot, batch)
        return self._known[key]


@pytest.fixture(scope="module")
def teacher() -> Segmenter:
    return golden_vit_b()


def _short(config: StageConfig) -> StageConfig:
    """Two steps of one microbatch of one slot, the second replaying the first's slot."""
    return config.model_copy(
        update={"microbatch_size": 1, "microbatches_per_step": 1, "epochs": 2, "epoch_slots": 1, "cached_epochs": 1}
    )


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_two_steps_of_the_papers_stage(stage: Stage, teacher: Segmenter, tmp_path: Path) -> None:
    config = _short(PROPOSED.stage_config(PAPER, stage))
    student = build_student(PAPER.student, mean=(0.4,) * 3, std=(0.2,) * 3, seed=0)
    if stage is FINETUNING:
        init_decoder_from(student, teacher)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    plan = Plan.build(slice_table(), config, stage, PAPER.student.image_size, seed=0)

    records: list[dict[str, float]] = []
    run = TrainingRun(plan=plan, config=config, reader=Reader(), teacher=RememberingTeacher(teacher), out=tmp_path)
    train(student, run, on_metrics=lambda _step, record: records.append(record))

    assert len(records) == 2
    assert all(np.isfinite([record["loss"], record["grad_norm"]]).all() for record in records)
    gradients = {name: p.grad for name, p in student.named_parameters() if p.requires_grad}
    trained = stage.prepare(student)
    assert gradients.keys() == trained.keys()
    assert any(name.startswith("mask_decoder.") for name in trained) == (stage is FINETUNING)
    still = [name for name, parameter in trained.items() if torch.equal(parameter, before[name])]
    assert not still
    flat = [name for name, gradient in gradients.items() if gradient is None or not gradient.any()]
    assert not flat
    others = [
        name for name, p in student.named_parameters() if name not in trained and not torch.equal(p, before[name])
    ]
    assert not others
