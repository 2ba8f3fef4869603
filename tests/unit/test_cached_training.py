"""Training from a cache is training with the teacher online: fifty steps of each stage, epochs replayed from it."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from medsam_core.base.config import OptimiserConfig
from medsam_core.imaging.rendering import Microbatch
from medsam_core.learning.questions import Question
from medsam_core.learning.stages import DISTILLATION, FINETUNING, Stage
from medsam_core.learning.teachers import CachedTeacher, OnlineTeacher, TeacherAnswers
from storage.answers.encodings import Floats
from tests.teachers import cache_of
from tests.unit.training_helpers import build_plan, read_log, run_stage, stage_config, stand_in

STEPS = 50
PLAN_EPOCHS = 2
"""Of the five epochs trained: three replay what is cached."""


class RecordingTeacher(OnlineTeacher):
    """Keeps its answers by the first slot they belong to."""

    def __init__(self) -> None:
        super().__init__(stand_in())
        self.answers: dict[int, Floats] = {}

    def answer(self, question: Question, first_slot: int, batch: Microbatch) -> Tensor:
        answers = super().answer(question, first_slot, batch)
        again = self.answers.setdefault(first_slot, answers.numpy())
        np.testing.assert_array_equal(again, answers.numpy())
        return answers


def losses(stage: Stage, out: Path, teacher: TeacherAnswers) -> npt.NDArray[np.float64]:
    # Whether a pixel is above the threshold of the IoU loss is no smooth question: small steps keep runs together.
    optimiser = OptimiserConfig(learning_rate=1e-3 if stage is DISTILLATION else 1e-4)
    config = stage_config(stage, epochs=5, epoch_slots=40, cached_epochs=PLAN_EPOCHS, optimiser=optimiser)
    assert build_plan(stage, config).total_steps == STEPS
    torch.manual_seed(0)
    run_stage(stage, out, config=config, teacher=teacher)
    return np.array([record["loss"] for record in read_log(out)])


def cached(folder: Path, stage: Stage, recorded: RecordingTeacher, encoding: str) -> CachedTeacher:
    answers = np.concatenate([recorded.answers[slot] for slot in sorted(recorded.answers)])
    return CachedTeacher(cache_of(folder, stage.question.array, answers, encoding, cut=(2, 8, 2)).read)


@pytest.mark.parametrize(
    ("stage", "encoding", "allowed"),
    [
        (DISTILLATION, "float16", 1e-3),
        (DISTILLATION, "int8_per_channel", 1e-3),
        (FINETUNING, "probability_uint8", 1e-2),
    ],
)
def test_fifty_steps_from_the_cache_follow_those_with_the_teacher(
    stage: Stage, encoding: str, allowed: float, tmp_path: Path
) -> None:
    teacher = RecordingTeacher()
    online = losses(stage, tmp_path / "online", teacher)
    found = losses(stage, tmp_path / "cached", cached(tmp_path / "cache", stage, teacher, encoding))
    assert len(online) == len(found) == STEPS
    assert online[-10:].mean() < online[:10].mean(), "the student was meant to learn"
    assert (np.abs(found - online) / online).max() <= allowed
    assert not np.array_equal(found, online), "the cached answers were meant to be rounded"
