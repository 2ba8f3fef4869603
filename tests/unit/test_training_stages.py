"""What each stage trains, whom it asks, and what it publishes."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from medsam_core.imaging.rendering import Microbatch, render_microbatch
from medsam_core.learning.questions import TEACHER_PROBABILITIES
from medsam_core.learning.stages import ADAPTATION, DISTILLATION, FINETUNING, STAGES, UNREACHED, Stage
from medsam_core.learning.teachers import BelievedTeacher, CachedTeacher
from medsam_core.models.checkpoints import load_model
from medsam_core.training.errors import TrainingError
from tests.unit.training_helpers import (
    GEOMETRY,
    Reader,
    build_plan,
    read_log,
    run_stage,
    same_weights,
    small_student,
    stage_config,
    stand_in,
    states_equal,
    student,
    teacher,
)


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_every_trained_tensor_changes_and_no_other_does(stage: Stage, tmp_path: Path) -> None:
    model = student()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = stage_config(stage, epochs=1, epoch_slots=8)
    run_stage(stage, tmp_path, model, config=config)
    trained = stage.prepare(model)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in trained), name
    frozen = before.keys() - trained.keys()
    of_encoder = {name for name in before if name.startswith("image_encoder.")}
    unreached = {name for name in before if name.startswith(UNREACHED)}
    expected = {DISTILLATION: before.keys() - of_encoder, FINETUNING: unreached, ADAPTATION: unreached | of_encoder}
    assert frozen == expected[stage]


def test_a_trained_tensor_out_of_the_losss_reach_is_an_error(tmp_path: Path) -> None:
    model = small_student()
    model.image_encoder.register_parameter("idle", nn.Parameter(torch.zeros(1)))
    with pytest.raises(TrainingError, match=r"found none for 1 \(image_encoder.idle"):
        run_stage(FINETUNING, tmp_path, model)


def test_distillation_keeps_other_parts_and_their_modes(tmp_path: Path) -> None:
    model = small_student()
    DISTILLATION.prepare(model)
    assert model.image_encoder.training
    assert not model.mask_decoder.training
    assert not model.prompt_encoder.training
    assert all(p.requires_grad == name.startswith("image_encoder.") for name, p in model.named_parameters())


def test_adaptation_learns_from_embeddings_alone_and_its_encoder_is_never_run(tmp_path: Path) -> None:
    """What batch norm has counted stays too."""

    class Unasked(nn.Module):
        def forward(self, *_: object) -> None:
            raise AssertionError("the encoder was run")

    config = stage_config(ADAPTATION, epochs=3, epoch_slots=20)
    model, encoder = small_student(), small_student().image_encoder
    encoder.forward = Unasked().forward  # type: ignore[method-assign]
    model.image_encoder = encoder
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    run_stage(ADAPTATION, tmp_path, model, config=config)
    assert states_equal(before, encoder.state_dict())
    losses = [record["loss"] for record in read_log(tmp_path)]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_a_stage_that_asks_a_teacher_wants_one(stage: Stage, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="expected a teacher, found none"):
        run_stage(stage, tmp_path, teacher=None)


def test_a_stand_in_teacher_is_pretrained_by_finetuning_without_a_teacher(tmp_path: Path) -> None:
    config = stage_config(FINETUNING, mask_distillation=False, epochs=3, epoch_slots=20)
    model = stand_in()
    encoder = {name: p.clone() for name, p in model.image_encoder.state_dict().items()}
    result = run_stage(FINETUNING, tmp_path, model, config=config, teacher=None)
    losses = [record["loss"] for record in read_log(tmp_path)]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    assert not states_equal(encoder, model.image_encoder.state_dict())
    assert states_equal(load_model(result.weights).state_dict(), model.state_dict())


def test_kept_epochs_are_the_weights_of_a_shorter_training(tmp_path: Path) -> None:
    config = stage_config(FINETUNING, mask_distillation=False)
    long = run_stage(FINETUNING, tmp_path / "long", stand_in(), config=config, teacher=None, keep_epochs=[1, 2])
    shorter = config.model_copy(update={"epochs": 1})
    short = run_stage(FINETUNING, tmp_path / "short", stand_in(), config=shorter, teacher=None)
    assert list(long.epoch_weights) == [1, 2]
    first = load_model(long.epoch_weights[1]).state_dict()
    assert states_equal(first, load_model(short.weights).state_dict())
    assert not states_equal(first, load_model(long.weights).state_dict())
    assert same_weights(long.epoch_weights[2], long.weights)


def test_an_epoch_that_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"numbers from 1 to 2, found \[0, 3\]"):
        run_stage(FINETUNING, tmp_path, keep_epochs=[0, 1, 3])
    run_stage(FINETUNING, tmp_path)
    with pytest.raises(TrainingError, match=r"expected weights of epochs \[1\], found none"):
        run_stage(FINETUNING, tmp_path, keep_epochs=[1])


def test_a_plan_of_another_shape_is_refused(tmp_path: Path) -> None:
    config = stage_config(FINETUNING)
    plan = build_plan(FINETUNING, config.model_copy(update={"epochs": 1}))
    with pytest.raises(TrainingError, match="build or load the plan with this configuration"):
        run_stage(FINETUNING, tmp_path, plan=plan, config=config)


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_cached_answers_train_as_live_ones(stage: Stage, tmp_path: Path) -> None:
    config = stage_config(stage, epochs=3, cached_epochs=2)
    plan = build_plan(stage, config)
    live = teacher()
    answers: list[npt.NDArray[np.float32]] = []
    for epoch in range(2):
        for microbatch in range(plan.microbatches_per_epoch):
            slots, mixing, first = plan.microbatch_slots(epoch, microbatch)
            batch = render_microbatch(slots, mixing, Reader(), GEOMETRY)
            answers.append(live.answer(stage.question, first, batch).numpy())
    stored = {stage.question.array: np.concatenate(answers)}
    cached = CachedTeacher(lambda array, start, stop: stored[array][start:stop])
    a = run_stage(stage, tmp_path / "live", config=config)
    b = run_stage(stage, tmp_path / "cached", config=config, teacher=cached)
    assert a.metrics.read_bytes() == b.metrics.read_bytes()
    assert same_weights(a.weights, b.weights)


def test_ground_truth_stands_where_the_teacher_is_not_believed() -> None:
    masks = torch.tensor([[[[1.0]]], [[[0.0]]]])
    batch = Microbatch(torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4), masks, 0)
    teacher = CachedTeacher(lambda _name, start, stop: np.full((stop - start, 1, 1, 1), 0.25, np.float32))
    believed = np.array([True, True, False, True])
    answers = BelievedTeacher(teacher, believed).answer(TEACHER_PROBABILITIES, 1, batch)
    assert answers.flatten().tolist() == [0.25, 0.0]
    assert BelievedTeacher(teacher, believed).reads_ahead
