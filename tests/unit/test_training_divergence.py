"""What is not finite stops training, says where it came from, and is never saved."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medsam_core.imaging.rendering import Microbatch, render_microbatch
from medsam_core.learning.questions import Question
from medsam_core.learning.stages import FINETUNING
from medsam_core.learning.teachers import OnlineTeacher
from medsam_core.training.checkpoint import MetricsLog, load_checkpoint, save_checkpoint
from medsam_core.training.errors import DivergedError, TrainingError
from medsam_core.training.loading import LoadedMicrobatch
from medsam_core.training.loop import LoopOptions
from medsam_core.training.precision import Precision
from medsam_core.training.process_group import ProcessGroup
from medsam_core.training.step import Stepper
from tests.unit.training_helpers import (
    GEOMETRY,
    Reader,
    build_plan,
    read_log,
    run_stage,
    small_student,
    stage_config,
    stand_in,
    states_equal,
    training_run,
)


class BrokenTeacher(OnlineTeacher):
    """Answers with a NaN from the given call on."""

    def __init__(self, calls: int) -> None:
        super().__init__(stand_in())
        self.calls = calls

    def answer(self, question: Question, first_slot: int, batch: Microbatch) -> Tensor:
        self.calls -= 1
        answers = super().answer(question, first_slot, batch)
        return answers if self.calls >= 0 else answers * torch.nan


def test_a_loss_that_is_not_finite_names_its_step_and_slots(tmp_path: Path) -> None:
    plan = build_plan(FINETUNING, stage_config(FINETUNING))
    slots, _, first = plan.microbatch_slots(1, 1)
    place = rf"slots {first} to {first + 1} \(rows \[{slots['row'][0]}, {slots['row'][1]}\]\)"
    options = LoopOptions(checkpoint_steps=1)
    model = small_student()
    with pytest.raises(DivergedError, match=rf"step 3 \(epoch 2\): .* teacher_bce nan in plan {place};"):
        run_stage(FINETUNING, tmp_path, model, teacher=BrokenTeacher(calls=7), options=options)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["step"] == 3
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert not (tmp_path / "model.safetensors").exists()
    assert len(read_log(tmp_path)) == 3


def test_a_gradient_that_is_not_finite_stops_before_the_update(tmp_path: Path) -> None:
    model = small_student()
    before = {name: p.clone() for name, p in model.named_parameters()}
    bias = model.mask_decoder.iou_prediction_head.layers[-1].get_parameter("bias")
    bias.register_hook(lambda gradient: gradient * torch.inf)  # type: ignore[no-untyped-call]
    with pytest.raises(DivergedError, match=r"step 0 .*gradient norm (nan|inf) in plan slots 0 to 1 .*slots 2 to 3"):
        run_stage(FINETUNING, tmp_path, model)
    assert states_equal(before, dict(model.named_parameters()))


def _stepper(scale: float | None) -> Stepper:
    """Return a stepper whose loss is scaled as in float16, or not at all."""
    precision = Precision(torch.device("cpu"))
    if scale is not None:
        precision.scaler = torch.GradScaler("cpu", init_scale=scale)
    return Stepper(small_student(), training_run(FINETUNING, Path("unused")), precision, ProcessGroup())


def _step(stepper: Stepper) -> dict[str, float]:
    plan = build_plan(FINETUNING, stage_config(FINETUNING))
    loaded = []
    for position in range(2):
        slots, mixing, first_slot = plan.microbatch_slots(0, position)
        loaded.append(
            LoadedMicrobatch(position, first_slot, render_microbatch(slots, mixing, Reader(), GEOMETRY), None)
        )
    return stepper.run(0, loaded)


def test_a_loss_scale_changes_neither_the_norm_nor_the_clipping() -> None:
    plain, scaled = _stepper(None), _stepper(1024.0)
    assert _step(scaled) == pytest.approx(_step(plain), rel=1e-4)
    for name, parameter in plain.trained.items():
        found, expected = scaled.trained[name].grad, parameter.grad
        assert found is not None
        assert expected is not None
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-7, msg=name)


def test_a_step_that_the_loss_scale_was_too_large_for_is_skipped_and_says_so() -> None:
    stepper = _stepper(1024.0)
    before: dict[str, Any] = {name: p.detach().clone() for name, p in stepper.segmenter.named_parameters()}
    bias: nn.Parameter = stepper.segmenter.mask_decoder.iou_prediction_head.layers[-1].get_parameter("bias")
    hook = bias.register_hook(lambda gradient: gradient * torch.inf)  # type: ignore[no-untyped-call]
    record = _step(stepper)
    assert record["skipped"] == 1
    assert "grad_norm" not in record
    assert states_equal(before, dict(stepper.segmenter.named_parameters()))
    assert stepper.precision.scaler.get_scale() < 1024
    hook.remove()
    record = _step(stepper)
    assert "skipped" not in record
    assert record["grad_norm"] > 0
    assert not states_equal(before, dict(stepper.segmenter.named_parameters()))


def test_weights_that_are_not_finite_never_replace_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"model": {"weight": torch.ones(2)}, "identity": {}, "step": 1})
    before = path.read_bytes()
    with pytest.raises(DivergedError, match=r"1 tensors with nan or inf \(weight, "):
        save_checkpoint(path, {"model": {"weight": torch.tensor([1.0, torch.nan])}, "identity": {}, "step": 2})
    assert path.read_bytes() == before
    assert load_checkpoint(path, torch.device("cpu"), {})["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_log_shorter_than_its_checkpoint_knows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(TrainingError, match="expected at least the 9 bytes its checkpoint knows of, found 3"):
        MetricsLog(tmp_path / "metrics.jsonl", 9)
