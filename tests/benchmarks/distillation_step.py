"""A step of distillation from cached embeddings against one online. `python -m tests.benchmarks.distillation_step`.

The project's own step (`medsam_core.training.step`) of RepViT-M1.1 at 1024 pixels: rendering, answers, forward,
backward, optimiser. One slot a step on a CPU; ten, with mixed precision, where there is a GPU.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medsam_core.base.config import StageConfig
from medsam_core.imaging.rendering import render_microbatch
from medsam_core.learning.stages import DISTILLATION
from medsam_core.learning.teachers import CachedTeacher, OnlineTeacher, TeacherAnswers
from medsam_core.models.config import StudentConfig
from medsam_core.models.segmenter import build_student
from medsam_core.planning.plan import Plan
from medsam_core.training.loading import MicrobatchLoader
from medsam_core.training.precision import Precision, mixed_name
from medsam_core.training.process_group import ProcessGroup
from medsam_core.training.run import TrainingRun
from medsam_core.training.step import Stepper
from tests.benchmarks._harness import ROUNDS, report
from tests.integration.test_paper_steps import PAPER, Reader, slice_table
from tests.teachers import cache_of, golden_vit_b

SIZE = 1024
NAME = "distillation_step"


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Return CPU seconds, or on a GPU wall seconds after all of its work."""
    if device.type == "cpu":
        started = time.process_time()
        work()
        return time.process_time() - started
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    """Print one line per case."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    microbatch = 10 if device.type == "cuda" else 1
    config: StageConfig = PAPER.distillation.model_copy(
        update={
            "microbatch_size": microbatch,
            "microbatches_per_step": 1,
            "epochs": 1,
            "epoch_slots": microbatch,
            "cached_epochs": 1,
        }
    )
    plan = Plan.build(slice_table(), config, DISTILLATION, SIZE, seed=0)
    reader, teacher = Reader(), golden_vit_b().to(device)
    precision = Precision(device, mixed_name(device) if device.type == "cuda" else "float32")

    def embeddings() -> npt.NDArray[np.float32]:
        slots, record, _ = plan.microbatch_slots(0, 0)
        batch = render_microbatch(slots, record, reader, teacher.geometry)
        with torch.inference_mode(), precision.autocast():
            found: npt.NDArray[np.float32] = teacher.encode(batch.images.to(device)).float().cpu().numpy()
        return found

    with tempfile.TemporaryDirectory() as folder:
        cache = cache_of(Path(folder), "embeddings", embeddings(), "int8_per_channel")

        def step_with(answers: TeacherAnswers) -> Callable[[], Any]:
            student = build_student(StudentConfig(backbone="repvit_m1_1", image_size=SIZE), (0.4,) * 3, (0.2,) * 3, 0)
            processes = ProcessGroup.from_environment(device)
            run = TrainingRun(plan=plan, config=config, reader=reader, teacher=answers, out=Path(folder))
            stepper = Stepper(student.to(device), run, precision, processes)
            loader = MicrobatchLoader(run, student.geometry, processes, prefetch=1, threads=1)
            return lambda: stepper.run(0, loader.microbatches_from(0))

        ours, rival = step_with(CachedTeacher(cache.read)), step_with(OnlineTeacher(teacher))
        ours()
        rival()
        own, ratios, caching = [], [], []
        for _ in range(ROUNDS):
            own.append(_seconds(ours, device))
            ratios.append(_seconds(rival, device) / own[-1])
            caching.append(_seconds(embeddings, device))
    unit = "images_per_s" if device.type == "cuda" else "images_per_cpu_s"
    speed = microbatch / statistics.median(own)
    report(NAME, "cached_vs_online", speed, unit, rival="the same step online", ratio=statistics.median(ratios))
    report(NAME, "online", speed / statistics.median(ratios), unit)
    report(NAME, "caching", microbatch / statistics.median(caching), unit)


if __name__ == "__main__":
    main()
