"""What is not finite stops training, says where it came from, and is never saved."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from medsam_core.imaging.rendering import Microbatch
from medsam_core.learning.questions import Question
from medsam_core.learning.stages import FINETUNING
from medsam_core.learning.teachers import OnlineTeacher
from medsam_core.training.checkpoint import MetricsLog, load_checkpoint, save_checkpoint
from medsam_core.training.errors import DivergedError, TrainingError
from medsam_core.training.loop import LoopOptions
from tests.unit.training_helpers import (
    build_plan,
    read_log,
    run_stage,
    small_student,
    stage_config,
    stand_in,
    states_equal,
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
