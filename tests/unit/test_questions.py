"""What is asked of the teacher: forms of the answers, and how they compare."""

import numpy as np
import pytest
import torch

from medsam_core.learning.questions import EMBEDDINGS, TEACHER_PROBABILITIES, Question
from medsam_core.learning.stages import ADAPTATION, STAGES, Stage
from medsam_core.learning.teachers import OnlineTeacher
from tests.unit.training_helpers import SIZE, stage_config, stand_in

QUESTIONS = [EMBEDDINGS, TEACHER_PROBABILITIES]


def answers(question: Question) -> torch.Tensor:
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 255
    boxes = torch.tensor([[4.0, 4, 40, 30], [0, 0, 64, 64], [10, 20, 30, 60]]).expand(2, 3, 4)
    with torch.inference_mode():
        return question.ask(stand_in().eval(), images, boxes)


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.kind)
def test_answers_have_the_form_that_is_stated_without_asking(question: Question) -> None:
    found = answers(question)
    assert found.dtype == torch.float32
    assert tuple(found.shape[1:]) == question.shape(stand_in().geometry, 3)
    bounded = bool(((found >= 0) & (found <= 1)).all())
    assert bounded == (question.values == "probabilities")


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.kind)
def test_the_bound_tells_the_same_image_from_another(question: Question) -> None:
    one, other = answers(question).numpy()
    assert question.error(one, one) == 0
    assert question.error(one, one + 1e-4 * np.abs(one).max()) <= question.allowed_error
    assert question.error(one, np.roll(one, 5, axis=-1)) > question.allowed_error
    if question is EMBEDDINGS:
        # Embeddings are compared channel by channel: one constant for all is told apart, however small its variance.
        assert question.error(one, other.mean(axis=(1, 2), keepdims=True) + 0 * one) > question.allowed_error


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_a_stage_is_found_by_its_name_and_names_its_section_of_a_profile(stage: Stage) -> None:
    assert STAGES[stage.name] is stage
    assert stage.section == ("teacher_adaptation" if stage is ADAPTATION else stage.name)


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_a_stage_names_as_many_terms_as_it_returns(stage: Stage) -> None:
    config = stage_config(stage)
    names = stage.terms(config)
    assert names[0] == "loss"
    assert len(set(names)) == len(names)
    asked = stage.asks(config)
    without = stage.terms(config.model_copy(update={"mask_distillation": False}))
    assert asked
    assert len(names) - len(without) == ("teacher_bce" in names)
    assert ("teacher_bce" in names) == (stage.question is TEACHER_PROBABILITIES)


def test_a_teacher_that_is_not_asked_is_left_alone() -> None:
    class Silent(OnlineTeacher):
        def answer(self, *_: object) -> torch.Tensor:
            raise AssertionError("nobody was to ask")

    stage = STAGES["finetuning"]
    config = stage_config(stage, mask_distillation=False)
    assert stage.ask(config, Silent(stand_in()), 0, None) is None  # type: ignore[arg-type]
