"""Batch-norm statistics: over the microbatches of a step, and recalibrated on clean images."""

from pathlib import Path

import torch
from torch import nn

from medsam_core.learning.stages import DISTILLATION
from medsam_core.training.batchnorm import StepStatistics, clean_images, recalibrate_batchnorm
from medsam_core.training.process_group import ProcessGroup
from tests.unit.training_helpers import (
    GEOMETRY,
    SIZE,
    Reader,
    build_plan,
    run_stage,
    same_weights,
    small_student,
    stage_config,
    stand_in,
    states_equal,
)


def test_a_step_takes_the_mean_of_its_microbatches_updates() -> None:
    layer = nn.BatchNorm2d(3).train()
    microbatches = [torch.randn(4, 3, 5, 5) * (1 + i) + i for i in range(3)]
    statistics = StepStatistics(layer)
    for _ in range(2):
        statistics.begin_step()
        for microbatch in microbatches:
            layer(microbatch)
            statistics.end_microbatch()
        statistics.end_step(ProcessGroup(), 3)
    mean = torch.stack([microbatch.mean(dim=(0, 2, 3)) for microbatch in microbatches]).mean(dim=0)
    var = torch.stack([microbatch.var(dim=(0, 2, 3)) for microbatch in microbatches]).mean(dim=0)
    torch.testing.assert_close(layer.running_mean, (1 - 0.9**2) * mean)
    torch.testing.assert_close(layer.running_var, 0.9**2 + (1 - 0.9**2) * var)
    assert layer.num_batches_tracked is not None
    assert layer.num_batches_tracked.item() == 2


def test_layers_in_evaluation_mode_keep_their_statistics() -> None:
    layer = nn.BatchNorm2d(3).eval()
    statistics = StepStatistics(layer)
    statistics.begin_step()
    layer(torch.randn(4, 3, 5, 5))
    statistics.end_microbatch()
    statistics.end_step(ProcessGroup(), 1)
    assert layer.num_batches_tracked is not None
    assert layer.num_batches_tracked.item() == 0


def test_recalibration_takes_the_plain_mean_over_clean_batches() -> None:
    model = small_student().eval()
    plan = build_plan(DISTILLATION, stage_config(DISTILLATION))
    weights = {name: p.clone() for name, p in model.named_parameters()}
    batches = list(clean_images(plan, Reader(), GEOMETRY, batches=3))
    assert [tuple(batch.shape) for batch in batches] == [(2, 3, SIZE, SIZE)] * 3
    assert recalibrate_batchnorm(model, batches) == 3
    convolution, first = model.image_encoder.get_submodule("0"), model.image_encoder.get_submodule("1")
    inputs = [convolution(model.normalise(batch)) for batch in batches]
    expected = torch.stack([x.mean(dim=(0, 2, 3)) for x in inputs]).mean(dim=0)
    torch.testing.assert_close(first.running_mean, expected)
    assert first.momentum == 0.1
    assert not any(module.training for module in model.modules())
    assert states_equal(weights, dict(model.named_parameters()))


def test_recalibration_without_images_or_batch_norm_changes_nothing() -> None:
    model = small_student()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert recalibrate_batchnorm(model, []) == 0
    assert states_equal(before, model.state_dict())
    assert recalibrate_batchnorm(stand_in(), [torch.zeros(1, 3, SIZE, SIZE)]) == 0


def test_published_weights_are_recalibrated_and_training_is_not(tmp_path: Path) -> None:
    plan = build_plan(DISTILLATION, stage_config(DISTILLATION))
    models = [small_student(), small_student()]
    plain = run_stage(DISTILLATION, tmp_path / "plain", models[0])
    clean = run_stage(
        DISTILLATION,
        tmp_path / "clean",
        models[1],
        keep_epochs=[1],
        clean_images=lambda: clean_images(plan, Reader(), GEOMETRY, batches=2),
    )
    assert plain.metrics.read_bytes() == clean.metrics.read_bytes()
    assert states_equal(models[0].state_dict(), models[1].state_dict())
    assert not same_weights(plain.weights, clean.weights)
