"""The number format of training: what is computed in it and what never is, how it is settled, and that it is kept."""

import dataclasses
import json
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medsam_core.imaging.rendering import Microbatch
from medsam_core.learning.questions import EMBEDDINGS, Question
from medsam_core.learning.stages import DISTILLATION, FINETUNING, STAGES, Stage
from medsam_core.learning.teachers import OnlineTeacher
from medsam_core.models.checkpoints import load_model, read_metadata, save_model
from medsam_core.models.segmenter import Segmenter
from medsam_core.training import precision_choice
from medsam_core.training.errors import TrainingError
from medsam_core.training.loading import MicrobatchLoader
from medsam_core.training.loop import LoopOptions
from medsam_core.training.precision import Precision, PrecisionName, mixed_name
from medsam_core.training.precision_choice import PrecisionWish, settle_precision
from medsam_core.training.process_group import ProcessGroup
from medsam_core.training.run import TRAINING, TrainResult
from medsam_core.training.step import Stepper
from pipelines.base.profile import load_profile
from pipelines.teacher.caches import Answerer, CacheWork
from pipelines.training.students import settled_precision
from pipelines.training.trainer import precision_on
from storage.releases.reader import ReleaseReader
from tests.unit.training_helpers import (
    GEOMETRY,
    KilledError,
    Reader,
    build_plan,
    kill_at,
    read_log,
    run_stage,
    same_weights,
    small_student,
    stage_config,
    stand_in,
    states_equal,
    student,
    training_run,
)

CPU = torch.device("cpu")
OFTEN = LoopOptions(checkpoint_steps=2)


@pytest.fixture
def timings(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What a measurement finds, on a processor with units; nothing is timed in tests."""
    found = {"float32": 2.0, "bfloat16": 1.0}
    monkeypatch.setattr(precision_choice, "measure", lambda *_: dict(found))
    monkeypatch.setattr(precision_choice, "bfloat16_units", lambda: ("amx_bf16",))
    return found


def trained_in(result: TrainResult) -> str:
    return str(json.loads(read_metadata(result.weights)[TRAINING])["precision"])


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_a_resumed_bfloat16_run_ends_in_the_same_bytes(stage: Stage, tmp_path: Path) -> None:
    whole = run_stage(stage, tmp_path / "whole", options=OFTEN, precision="bfloat16")
    with pytest.raises(KilledError):
        run_stage(stage, tmp_path / "killed", options=OFTEN, precision="bfloat16", on_metrics=kill_at(3))
    resumed = run_stage(stage, tmp_path / "killed", options=OFTEN, precision="bfloat16")
    assert (resumed.first_step, trained_in(resumed)) == (3, "bfloat16")
    assert whole.metrics.read_bytes() == resumed.metrics.read_bytes()
    assert same_weights(whole.weights, resumed.weights)


def test_a_resumed_bfloat16_run_of_the_real_student_ends_in_the_same_bytes(tmp_path: Path) -> None:
    config = stage_config(FINETUNING, epochs=1)
    whole = run_stage(FINETUNING, tmp_path / "whole", student(), config=config, options=OFTEN, precision="bfloat16")
    killing = {"config": config, "options": OFTEN, "precision": "bfloat16"}
    with pytest.raises(KilledError):
        run_stage(FINETUNING, tmp_path / "killed", student(), on_metrics=kill_at(2), **killing)
    resumed = run_stage(FINETUNING, tmp_path / "killed", student(), **killing)
    assert resumed.first_step == 2
    assert same_weights(whole.weights, resumed.weights)


@pytest.mark.parametrize("now", [{"float32": 1.0, "bfloat16": 9.0}, None], ids=["measures otherwise", "no units"])
def test_a_resumed_run_keeps_its_format_whatever_it_would_measure_now(
    now: dict[str, float] | None, timings: dict[str, float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = run_stage(FINETUNING, tmp_path / "stated", options=OFTEN, precision="bfloat16")
    with pytest.raises(KilledError):
        run_stage(FINETUNING, tmp_path / "auto", options=OFTEN, precision="auto", on_metrics=kill_at(3))
    record = (tmp_path / "auto/precision.json").read_bytes()
    if now is None:
        monkeypatch.setattr(precision_choice, "bfloat16_units", lambda: ())
    else:
        timings.update(now)
    resumed = run_stage(FINETUNING, tmp_path / "auto", options=OFTEN, precision="auto")
    assert (resumed.first_step, trained_in(resumed)) == (3, "bfloat16")
    assert same_weights(whole.weights, resumed.weights)
    again = run_stage(FINETUNING, tmp_path / "auto", options=OFTEN, precision="auto")
    assert again.first_step == again.steps
    assert (tmp_path / "auto/precision.json").read_bytes() == record
    assert json.loads(record) == {
        "wish": "auto",
        "name": "bfloat16",
        "units": ["amx_bf16"],
        "seconds": {"float32": 2.0, "bfloat16": 1.0},
    }


def test_without_units_auto_measures_nothing_and_is_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision_choice, "measure", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(precision_choice, "bfloat16_units", lambda: ())
    auto = run_stage(FINETUNING, tmp_path / "auto", precision="auto")
    plain = run_stage(FINETUNING, tmp_path / "plain")
    assert same_weights(auto.weights, plain.weights)
    assert settled_precision(tmp_path / "plain") == {}
    settled = {"wish": "auto", "name": "float32", "units": [], "seconds": {}}
    assert settled_precision(tmp_path / "auto") == {"precision": settled}


@pytest.mark.parametrize(("bfloat16", "chosen"), [(1.0, "bfloat16"), (1.9, "float32"), (2.5, "float32")])
def test_auto_takes_bfloat16_only_where_it_pays(
    bfloat16: float, chosen: str, timings: dict[str, float], tmp_path: Path
) -> None:
    timings["bfloat16"] = bfloat16
    run = training_run(FINETUNING, tmp_path)
    assert settle_precision(small_student(), run, CPU, "auto", ProcessGroup()).name == chosen


@pytest.mark.parametrize("stage", [DISTILLATION, FINETUNING], ids=["distillation", "finetuning"])
def test_a_measurement_leaves_the_model_as_it_was(stage: Stage, tmp_path: Path) -> None:
    model = small_student()
    found = precision_choice.measure(model, training_run(stage, tmp_path))
    assert set(found) == {"float32", "bfloat16"}
    assert min(found.values()) > 0
    assert states_equal(model.state_dict(), small_student().state_dict())
    assert not list(tmp_path.iterdir())


def test_rank_0_decides_for_all(tmp_path: Path, timings: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    posted: list[Tensor] = []

    def broadcast(tensor: Tensor, src: int) -> None:
        assert src == 0
        posted.append(tensor.clone())
        tensor.copy_(posted[0])

    monkeypatch.setattr(torch.distributed, "broadcast", broadcast)
    run = training_run(FINETUNING, tmp_path)
    names = [settle_precision(small_student(), run, CPU, "auto", ProcessGroup(rank, 2)).name for rank in range(2)]
    assert names == ["bfloat16", "bfloat16"]
    assert timings["bfloat16"] == 1.0


def test_weights_optimiser_statistics_and_losses_stay_float32(tmp_path: Path) -> None:
    run_stage(FINETUNING, tmp_path, student(), config=stage_config(FINETUNING, epochs=1), precision="bfloat16")
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    moments = [value for own in state["optimizer"]["state"].values() for value in own.values()]
    kinds = {value.dtype for value in [*state["model"].values(), *moments] if value.is_floating_point()}
    assert kinds == {torch.float32}
    assert {p.dtype for p in load_model(tmp_path / "model.safetensors").parameters()} == {torch.float32}


@pytest.mark.parametrize("stage", [DISTILLATION, FINETUNING], ids=["distillation", "finetuning"])
def test_bfloat16_trains_like_float32(stage: Stage, tmp_path: Path) -> None:
    losses = {}
    for name in ("float32", "bfloat16"):
        run_stage(stage, tmp_path / name, config=stage_config(stage, epochs=3, epoch_slots=20), precision=name)
        losses[name] = [record["loss"] for record in read_log(tmp_path / name)]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)
    assert losses["bfloat16"] != losses["float32"]


class WatchedTeacher(OnlineTeacher):
    """Keeps its answers, and whether autocast was on when it was asked."""

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__(segmenter)
        self.asked: list[tuple[bool, Tensor]] = []

    def answer(self, question: Question, first_slot: int, batch: Microbatch) -> Tensor:
        answers = super().answer(question, first_slot, batch)
        self.asked.append((torch.is_autocast_enabled("cpu"), answers))
        return answers


@pytest.mark.parametrize("stage", [DISTILLATION, FINETUNING], ids=["distillation", "finetuning"])
def test_a_teacher_is_asked_in_float32_on_a_cpu(stage: Stage, tmp_path: Path) -> None:
    asked = {}
    for name in ("float32", "bfloat16"):
        watched = WatchedTeacher(stand_in())
        run_stage(stage, tmp_path / name, teacher=watched, precision=name)
        asked[name] = watched.asked
    assert not any(on for on, _ in asked["bfloat16"])
    assert len(asked["float32"]) == len(asked["bfloat16"]) > 3
    for (_, plain), (_, short) in zip(asked["float32"], asked["bfloat16"], strict=True):
        assert torch.equal(plain, short)


def test_a_cache_holds_float32_answers_whatever_the_profile_trains_in(tmp_path: Path) -> None:
    teacher, plan = stand_in(), build_plan(DISTILLATION, stage_config(DISTILLATION))
    save_model(tmp_path / "model.safetensors", teacher, {})
    training = {"precision": "bfloat16", "device": "cpu", "mixed_precision": True}
    workspace = SimpleNamespace(
        profile=load_profile("sample", {"training": training}),
        artefacts=SimpleNamespace(get=lambda _: SimpleNamespace(path=tmp_path)),
    )
    work = cast("CacheWork", SimpleNamespace(workspace=workspace, plan=plan, question=EMBEDDINGS, teacher=None))
    answerer = Answerer(work, cast("ReleaseReader", Reader()))
    plain = WatchedTeacher(teacher)
    first = answerer._rendered(0)
    expected = plain.answer(EMBEDDINGS, 0, first).numpy()
    np.testing.assert_array_equal(answerer.slots(0, len(expected)), expected)


def test_torchs_bfloat16_would_be_noticed_in_a_teachers_answers() -> None:
    """So the two tests above can fail."""
    model, images = stand_in(), torch.rand(2, 3, 64, 64) * 255
    with torch.no_grad():
        plain = model.encode(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not torch.equal(model.encode(images).float(), plain)


def test_images_and_model_are_channels_last_in_bfloat16_alone(tmp_path: Path) -> None:
    layouts: dict[str, Any] = {}
    names: tuple[PrecisionName, ...] = ("float32", "bfloat16")
    for name in names:
        model = small_student()
        run = training_run(FINETUNING, tmp_path)
        stepper = Stepper(model, run, Precision(CPU, name), ProcessGroup())
        seen: list[Tensor] = []

        def keep(_module: nn.Module, images: tuple[Tensor], seen: list[Tensor] = seen) -> None:
            seen.append(images[0])

        model.image_encoder.register_forward_pre_hook(keep)
        with closing(MicrobatchLoader(run, GEOMETRY, ProcessGroup(), 1, 1).microbatches_from(0)) as microbatches:
            stepper.run(0, [next(microbatches)])
        weight = model.get_parameter("image_encoder.0.weight")
        layouts[name] = [t.is_contiguous(memory_format=torch.channels_last) for t in (seen[0], weight)]
    assert layouts == {"float32": [False, False], "bfloat16": [True, True]}


def test_what_a_cpu_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="mixed precision: expected a cuda device, found cpu"):
        run_stage(FINETUNING, tmp_path, precision="mixed")
    with pytest.raises(TrainingError, match="float16: expected a cuda device, found cpu"):
        Precision(CPU, "float16")


@pytest.mark.parametrize("native", [True, False])
def test_on_cuda_emulated_bfloat16_does_not_count(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    cuda = torch.device("cuda")
    assert mixed_name(cuda) == ("bfloat16" if native else "float16")
    if native:
        assert Precision(cuda, "bfloat16").layout == torch.contiguous_format
    else:
        with pytest.raises(TrainingError, match="bfloat16: expected a device with units for it"):
            Precision(cuda, "bfloat16")


@pytest.mark.parametrize(
    ("device", "mixed", "stated", "wish"),
    [
        ("cpu", True, "float32", "float32"),
        ("cpu", True, "auto", "auto"),
        ("cuda", True, "float32", "mixed"),
        ("cuda", False, "float32", "float32"),
        ("cuda", True, "bfloat16", "bfloat16"),
    ],
)
def test_mixed_precision_is_of_cuda_and_a_stated_format_goes_before_it(
    device: str, mixed: bool, stated: Any, wish: PrecisionWish
) -> None:
    profile = load_profile("sample", {"training": {"mixed_precision": mixed}})
    assert precision_on(torch.device(device), profile, stated) == wish


def test_a_record_says_format_flags_and_seconds() -> None:
    record = precision_choice.PrecisionRecord(
        wish="auto", name="bfloat16", units=("amx_bf16",), seconds={"float32": 1.234, "bfloat16": 0.5}
    )
    said = "bfloat16 (asked for auto; amx_bf16; float32 1.23 CPU s a microbatch, bfloat16 0.5 CPU s a microbatch)"
    assert str(record) == said
    without = dataclasses.replace(record, name="float32", units=(), seconds={})
    assert str(without) == "float32 (asked for auto; no units for bfloat16)"
