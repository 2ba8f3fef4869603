"""Steps of both stages, float32 against bfloat16 with channels last. `python -m tests.benchmarks.training_step`.

The project's own step (`medsam_core.training.step`) of RepViT-M1.1 at 256 pixels, eight slots, on the CPU: forward,
backward, optimiser, on answers that are at hand. Formats are timed in turn; `OMP_NUM_THREADS` threads, two by default.
Ratio and shares of the peak are of CPU seconds, as the cores may be shared; what is waited for rendering is wall time.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from medsam_core.base.config import StageConfig
from medsam_core.learning.stages import DISTILLATION, FINETUNING, Stage
from medsam_core.learning.teachers import OnlineTeacher
from medsam_core.models.config import StudentConfig, TeacherConfig
from medsam_core.models.segmenter import Segmenter, build_student, build_teacher, init_decoder_from
from medsam_core.planning.plan import Plan
from medsam_core.training.loading import LoadedMicrobatch, MicrobatchLoader
from medsam_core.training.precision import Precision, PrecisionName, bfloat16_units
from medsam_core.training.process_group import ProcessGroup
from medsam_core.training.run import TrainingRun
from medsam_core.training.stand_in import MemoryReader, synthetic_slices, table_of
from medsam_core.training.step import Stepper
from tests.benchmarks._harness import cpu_seconds, write_line

NAME = "training_step"
SIZE = 256
MICROBATCH = 8
ROUNDS = 3
"""Steps that are timed in each format; one takes seconds."""

PEAK_SIDE = 2048
"""Of the square matrices whose product stands for the peak, in the same format and run."""

FORMATS: tuple[PrecisionName, ...] = ("float32", "bfloat16")


@dataclass
class Timings:
    """Medians over the rounds, by format.

    Attributes:
        cpu: CPU seconds of a step.
        wall: Its wall seconds.
        waiting: Wall seconds of a step that are spent waiting for the loading thread.
        peak: Operations a CPU second of the matrix product.
        ratio: float32's CPU seconds over bfloat16's, of one round.
    """

    cpu: dict[str, float]
    wall: dict[str, float]
    waiting: dict[str, float]
    peak: dict[str, float]
    ratio: float


def _config(stage: Stage, prompts: int) -> StageConfig:
    config = StageConfig(
        epochs=1, microbatch_size=MICROBATCH, microbatches_per_step=1, epoch_slots=MICROBATCH * 64, cached_epochs=1
    )
    return config.model_copy(update={"prompts_per_slot": prompts} if stage is FINETUNING else {})


def _student(teacher: Segmenter) -> Segmenter:
    config = StudentConfig(backbone="repvit_m1_1", image_size=SIZE)
    student = build_student(config, (0.4,) * 3, (0.2,) * 3, 0)
    init_decoder_from(student, teacher)
    return student


def _peak_operations(name: PrecisionName) -> float:
    """Return operations a CPU second of a large matrix product."""
    a = torch.rand(PEAK_SIDE, PEAK_SIDE).to(getattr(torch, name))
    return 2 * PEAK_SIDE**3 / cpu_seconds(lambda: a @ a)


def _operations(stepper: Stepper, microbatch: LoadedMicrobatch) -> float:
    """Return the operations of a step, two a multiply-add, as torch counts its products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        stepper.run(0, [microbatch])
    return float(counter.get_total_flops())


def _timed(run: TrainingRun, steppers: dict[PrecisionName, Stepper], microbatch: LoadedMicrobatch) -> Timings:
    """Time a step in each format in turn: on a microbatch at hand, then on one that the loading thread brings."""
    found: dict[str, dict[str, list[float]]] = {
        what: {name: [] for name in FORMATS} for what in ("cpu", "wall", "waiting", "peak")
    }
    geometry = steppers["float32"].segmenter.geometry
    loader = MicrobatchLoader(run, geometry, ProcessGroup(), prefetch=2, threads=1)
    with closing(loader.microbatches_from(0)) as loaded:
        next(loaded)
        for number in range(1 + ROUNDS):
            for name, stepper in steppers.items():
                peak = _peak_operations(name)
                started = time.perf_counter()
                cpu = cpu_seconds(lambda stepper=stepper: stepper.run(0, [microbatch]))  # type: ignore[misc]
                wall = time.perf_counter() - started
                waited = _waiting(loaded)
                if number:
                    for what, value in (("cpu", cpu), ("wall", wall), ("waiting", waited), ("peak", peak)):
                        found[what][name].append(value)
    ratios = [a / b for a, b in zip(found["cpu"]["float32"], found["cpu"]["bfloat16"], strict=True)]
    medians = {what: {name: statistics.median(own) for name, own in by_name.items()} for what, by_name in found.items()}
    return Timings(**medians, ratio=statistics.median(ratios))  # type: ignore[arg-type]


def _waiting(loaded: Iterator[LoadedMicrobatch]) -> float:
    """Return the wall seconds that taking the next microbatch lasts, after a step has given the loader its time."""
    started = time.perf_counter()
    next(loaded)
    return time.perf_counter() - started


def _report(stage: Stage, prompts: int, teacher: Segmenter, folder: Path) -> None:
    """Time a stage and print its line."""
    slices, modality = synthetic_slices(7, 2, 1)
    config = _config(stage, prompts)
    plan = Plan.build(table_of(slices, modality), config, stage, SIZE, seed=0)
    run = TrainingRun(
        plan=plan, config=config, reader=MemoryReader(slices), teacher=OnlineTeacher(teacher), out=folder / stage.name
    )
    device = torch.device("cpu")
    steppers = {name: Stepper(_student(teacher), run, Precision(device, name), ProcessGroup()) for name in FORMATS}
    loader = MicrobatchLoader(run, teacher.geometry, ProcessGroup(), prefetch=1, threads=1)
    with closing(loader.microbatches_from(0)) as loaded:
        first = next(loaded)
    first = replace(first, answers=stage.ask(config, run.teacher, 0, first.batch))
    operations = _operations(steppers["float32"], first)
    found = _timed(run, steppers, first)
    line: dict[str, object] = {"benchmark": NAME, "case": stage.name, "rival": "float32", "ratio": found.ratio}
    for name in FORMATS:
        line |= {
            f"{name}_images_per_cpu_s": MICROBATCH / found.cpu[name],
            f"{name}_steps_per_s": 1 / found.wall[name],
            f"{name}_waiting_share": found.waiting[name] / (found.wall[name] + found.waiting[name]),
            f"{name}_share_of_peak": operations / found.cpu[name] / found.peak[name],
        }
    write_line(line | {"threads": torch.get_num_threads(), "units": list(bfloat16_units())})


def main() -> None:
    """Print one line for each stage."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    teacher = build_teacher(TeacherConfig(kind="stand_in", image_size=SIZE))
    with tempfile.TemporaryDirectory() as folder:
        for stage, prompts in ((DISTILLATION, 1), (FINETUNING, 4)):
            _report(stage, prompts, teacher, Path(folder))


if __name__ == "__main__":
    main()
