"""The training loop: resuming, its log and lock, accumulation, and processes that share a step."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

from medsam_core.imaging.rendering import render_microbatch
from medsam_core.learning.stages import FINETUNING, STAGES, Stage
from medsam_core.models.segmenter import Segmenter
from medsam_core.planning.plan import Plan
from medsam_core.training.checkpoint import output_lock
from medsam_core.training.errors import OutputBusyError, TrainingError
from medsam_core.training.loading import LoadedMicrobatch, MicrobatchLoader
from medsam_core.training.loop import LoopOptions, train
from medsam_core.training.precision import Precision
from medsam_core.training.process_group import ProcessGroup
from medsam_core.training.run import TrainingRun
from medsam_core.training.step import Stepper
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
    teacher,
    training_run,
)


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_a_resumed_run_ends_in_the_same_bytes(stage: Stage, tmp_path: Path) -> None:
    options = LoopOptions(checkpoint_steps=2)
    whole = run_stage(stage, tmp_path / "whole", options=options)
    for step in (2, 5):  # between two checkpoints, and before the end of the last epoch is recorded
        with pytest.raises(KilledError):
            run_stage(stage, tmp_path / "killed", options=options, on_metrics=kill_at(step))
    assert not (tmp_path / "killed/model.safetensors").exists()
    resumed = run_stage(stage, tmp_path / "killed", options=options)
    assert (whole.first_step, resumed.first_step, resumed.steps) == (0, 4, 6)
    assert whole.metrics.read_bytes() == resumed.metrics.read_bytes()
    assert same_weights(whole.weights, resumed.weights)


@pytest.mark.slow
def test_a_trainer_killed_by_signal_resumes(tmp_path: Path) -> None:
    script = (
        "import os, signal; from pathlib import Path; from tests.unit import test_training as t;"
        "t.torch.set_num_threads(1);"
        "kill = lambda step, _: step == 3 and os.kill(os.getpid(), signal.SIGKILL);"
        f"t.run_stage(t.FINETUNING, Path({str(tmp_path / 'killed')!r}), on_metrics=kill,"
        " options=t.LoopOptions(checkpoint_steps=2))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    # Sums are taken in another order by another number of threads, and the tests before may have changed it.
    torch.set_num_threads(1)
    whole = run_stage(FINETUNING, tmp_path / "whole")
    resumed = run_stage(FINETUNING, tmp_path / "killed")
    assert resumed.first_step == 3
    assert whole.metrics.read_bytes() == resumed.metrics.read_bytes()


def test_how_microbatches_are_loaded_changes_nothing(tmp_path: Path) -> None:
    plain = run_stage(FINETUNING, tmp_path / "plain", options=LoopOptions(prefetch=1))
    busy = run_stage(FINETUNING, tmp_path / "busy", options=LoopOptions(prefetch=5, loader_threads=3))
    assert plain.metrics.read_bytes() == busy.metrics.read_bytes()
    assert same_weights(plain.weights, busy.weights)


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    first = run_stage(FINETUNING, tmp_path)
    before = first.metrics.read_bytes(), first.weights.stat().st_mtime_ns
    again = run_stage(FINETUNING, tmp_path, on_metrics=kill_at(0))
    assert again.first_step == again.steps == 6
    assert (again.metrics.read_bytes(), again.weights.stat().st_mtime_ns) == before


def test_another_trainings_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        run_stage(FINETUNING, tmp_path, on_metrics=kill_at(3), fingerprint="a")
    with pytest.raises(TrainingError, match="fingerprint: expected b, found a"):
        run_stage(FINETUNING, tmp_path, fingerprint="b")
    run_stage(FINETUNING, tmp_path, fingerprint="a")


def test_without_a_fingerprint_the_settings_tell_trainings_apart(tmp_path: Path) -> None:
    run_stage(FINETUNING, tmp_path)
    config = stage_config(FINETUNING, box_jitter_px=1)
    with pytest.raises(TrainingError, match=r"config.box_jitter_px: expected 1, found 5"):
        run_stage(FINETUNING, tmp_path, config=config)


def test_settings_that_mean_the_same_are_gone_on_with_under_a_fingerprint(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        run_stage(FINETUNING, tmp_path, on_metrics=kill_at(3), fingerprint="a")
    config = stage_config(FINETUNING)
    spelled_out = config.model_copy(update={"cached_epochs": config.epochs})
    assert run_stage(FINETUNING, tmp_path, fingerprint="a", config=spelled_out).first_step > 0


def test_a_second_trainer_is_refused(tmp_path: Path) -> None:
    with output_lock(tmp_path), pytest.raises(OutputBusyError, match=f"found process {os.getpid()} at work"):
        run_stage(FINETUNING, tmp_path)
    run_stage(FINETUNING, tmp_path)


def test_the_log_tells_everyone_the_same(tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []
    run_stage(FINETUNING, tmp_path, on_metrics=lambda _, values: seen.append(values))
    records = read_log(tmp_path)
    assert [r["step"] for r in records] == list(range(6))
    assert [r["epoch"] for r in records] == [1, 1, 1, 2, 2, 2]
    assert [r["lr"] for r in records] == [5e-4] * 3 + [1e-3] * 3
    assert [r["images"] for r in records] == [4, 8, 12, 16, 20, 24]
    for record in records:
        assert record["loss"] == pytest.approx(sum(record[t] for t in ("dice", "bce", "iou", "teacher_bce")), rel=1e-5)
    assert all(values.pop("images_per_second") > 0 for values in seen)
    assert seen == records


def _one_step(microbatch_size: int, microbatches_per_step: int) -> tuple[dict[str, float], dict[str, Tensor]]:
    changes = {
        "microbatch_size": microbatch_size,
        "microbatches_per_step": microbatches_per_step,
        "mask_distillation": False,
    }
    config = stage_config(FINETUNING, **changes)
    plan = build_plan(FINETUNING, config)
    run = training_run(FINETUNING, Path("unused"), config=config, plan=plan, teacher=None)
    stepper = Stepper(stand_in(), run, Precision(torch.device("cpu")), ProcessGroup())
    microbatches = [_loaded(plan, microbatch) for microbatch in range(microbatches_per_step)]
    record = stepper.run(0, microbatches)
    return record, {name: p.grad for name, p in stepper.trained.items() if p.grad is not None}


def _loaded(plan: Plan, microbatch: int) -> LoadedMicrobatch:
    slots, mixing, first_slot = plan.microbatch_slots(0, microbatch)
    return LoadedMicrobatch(microbatch, first_slot, render_microbatch(slots, mixing, Reader(), GEOMETRY), None)


def test_microbatches_of_a_step_accumulate_to_one_bigger_microbatch() -> None:
    (one, big), (many, small) = _one_step(4, 1), _one_step(1, 4)
    assert many == pytest.approx(one, rel=1e-4)
    assert big.keys() == small.keys()
    for name in big:
        torch.testing.assert_close(small[name], big[name], rtol=1e-3, atol=1e-6, msg=name)


def _rank(rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    processes = ProcessGroup(rank, size)
    model = small_student(seed=1 + rank)  # rank 0's weights must reach the others
    run_stage(FINETUNING, Path(folder) / "out", model, config=_smooth_config(), teacher=teacher(), processes=processes)
    processes.close()


def _smooth_config() -> Any:
    """Adam's steps are near the sign of a gradient, which amplifies rounding; a large epsilon makes them smooth."""
    optimiser = {"learning_rate": 1e-3, "epsilon": 1e-2}
    return stage_config(FINETUNING, microbatches_per_step=3, optimiser=optimiser)


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path: Path) -> None:
    alone = small_student()
    run_stage(FINETUNING, tmp_path / "alone", alone, config=_smooth_config())
    mp.spawn(_rank, args=(2, str(tmp_path)), nprocs=2)  # type: ignore[attr-defined, no-untyped-call]
    together = torch.load(tmp_path / "out/checkpoint.pt", weights_only=True)["model"]
    start = small_student().state_dict()
    moved = 0
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-5, msg=name)
        moved += not torch.equal(value, start[name])
    assert moved > 100
    for ours, theirs in zip(read_log(tmp_path / "alone"), read_log(tmp_path / "out"), strict=True):
        assert theirs == pytest.approx(ours, rel=1e-3)


class Meeting:
    """Two threads in the place of two processes, with the collective operations that training asks torch for."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(2, timeout=60)
        self._own = threading.local()
        self._posted: dict[int, Tensor] = {}

    def enter(self, rank: int, model: Segmenter, run: TrainingRun) -> dict[str, Tensor]:
        """Train as one of the two; return the weights."""
        self._own.rank = rank
        try:
            train(model, run, processes=ProcessGroup(rank, 2))
        except BaseException:
            self._barrier.abort()
            raise
        return model.state_dict()

    def all_reduce(self, tensor: Tensor) -> None:
        self._posted[self._own.rank] = tensor.clone()
        self._barrier.wait()
        total = self._posted[0] + self._posted[1]
        self._barrier.wait()
        tensor.copy_(total)

    def broadcast(self, tensor: Tensor, src: int) -> None:
        if self._own.rank == src:
            self._posted[src] = tensor.clone()
        self._barrier.wait()
        found = self._posted[src]
        self._barrier.wait()
        tensor.copy_(found)


def test_two_that_share_every_step_train_like_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = small_student()
    run_stage(FINETUNING, tmp_path / "alone", alone, config=_smooth_config())
    meeting = Meeting()
    for name in ("all_reduce", "broadcast"):
        monkeypatch.setattr(torch.distributed, name, getattr(meeting, name))
    # Made here: weights are drawn from one state of torch that threads share. Rank 0's must reach the other.
    models = [small_student(seed=1 + rank) for rank in range(2)]
    runs = [training_run(FINETUNING, tmp_path / "out", config=_smooth_config()) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        entered = [pool.submit(meeting.enter, rank, models[rank], runs[rank]) for rank in range(2)]
        both = [future.result() for future in entered]
    for name, value in alone.state_dict().items():
        for own in both:
            torch.testing.assert_close(own[name], value, rtol=1e-4, atol=1e-5, msg=name)
    for ours, theirs in zip(read_log(tmp_path / "alone"), read_log(tmp_path / "out"), strict=True):
        assert theirs == pytest.approx(ours, rel=1e-3)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_microbatch_of_a_step_falls_to_one_process(size: int) -> None:
    config = stage_config(FINETUNING, microbatches_per_step=3)
    run = training_run(FINETUNING, Path("unused"), config=config)
    loaders = [MicrobatchLoader(run, GEOMETRY, ProcessGroup(rank, size), 2, 1) for rank in range(size)]
    taken = [
        [(microbatch.position, microbatch.first_slot) for microbatch in loader.microbatches_from(1)]
        for loader in loaders
    ]
    steps = run.plan.total_steps - 1
    expected = sorted(microbatch for own in taken for microbatch in own)
    assert len(expected) == 3 * steps
    for step in range(steps):
        share = [own[step * len(own) // steps : (step + 1) * len(own) // steps] for own in taken]
        assert sorted(position for own in share for position, _ in own) == [0, 1, 2]
        _, epoch, first = run.plan.locate(step + 1)
        slots = [run.plan.microbatch_slots(epoch, first + position)[2] for position in range(3)]
        assert sorted(slot for own in share for _, slot in own) == slots


def test_more_processes_than_microbatches_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="at most 2, one for each microbatch"):
        run_stage(FINETUNING, tmp_path, processes=ProcessGroup(0, 3))
