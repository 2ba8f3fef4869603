"""The trainer process: reads a job file, trains one stage, ends; `pipelines.runs.launch` starts it, or a person.

What belongs here: opening stores, plan, caches and models for `medsam_core.training`. Not here: training.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from dagster_pipes import open_dagster_pipes
from torch import Tensor

from medsam_core.base.allocator import keep_freed_memory
from medsam_core.base.config import PrecisionSetting
from medsam_core.base.data import SliceReader
from medsam_core.learning.questions import TEACHER_PROBABILITIES
from medsam_core.learning.stages import STAGES
from medsam_core.learning.teachers import BelievedTeacher, CachedTeacher, OnlineTeacher, TeacherAnswers
from medsam_core.models.checkpoints import load_model
from medsam_core.models.segmenter import Segmenter, build_student, init_decoder_from, init_last_norm_from
from medsam_core.models.weights import CheckpointError
from medsam_core.planning.plan import Plan
from medsam_core.training.batchnorm import clean_images
from medsam_core.training.errors import TrainingError
from medsam_core.training.loop import LoopOptions, train
from medsam_core.training.parent_watch import require_parent
from medsam_core.training.precision_choice import PrecisionWish
from medsam_core.training.process_group import ProcessGroup
from medsam_core.training.run import TrainingRun
from pipelines.base.devices import choose_device
from pipelines.base.profile import Profile, ProfileError
from pipelines.base.settings import read_settings
from pipelines.base.terminal import said_of
from pipelines.base.values import BELIEVED, CacheRef, TrainerJob, from_json
from pipelines.base.workspace import Workspace
from pipelines.ingest.releases import stage_reader
from pipelines.training.plans import load_plan
from storage.answers.cache_locks import reading_access
from storage.answers.teacher_cache import TeacherCache
from storage.base.atomic import read_json
from storage.base.errors import StorageError
from storage.base.modalities import MODALITIES
from storage.base.references import ArtefactRef
from storage.releases.columns import SliceColumns

RECALIBRATION_BATCHES = 32
"""Clean microbatches from which a distilled encoder's batch-norm statistics are taken."""

R = TypeVar("R")

logger = logging.getLogger(__name__)


def _required(reference: R | None, what: str) -> R:
    """Return what a job has to name."""
    if reference is None:
        raise ValueError(f"trainer's job: expected {what}, found none; materialise what it trains again")
    return reference


def _model(workspace: Workspace, job: TrainerJob) -> Segmenter:
    """Return the model that the stage starts from."""
    artefacts = workspace.artefacts
    if job.starts_from is not None:
        model = load_model(artefacts.get(job.starts_from).path / "model.safetensors")
        if model.image_size != workspace.profile.student.image_size:
            model = model.resized(workspace.profile.student.image_size)
    else:
        pixels = _required(job.statistics, "statistics").info
        student = _required(job.student, "the student's architecture")
        model = build_student(student, pixels["mean"], pixels["std"], workspace.profile.seeds.init)
        if student.starts_from_last_norm:
            init_last_norm_from(model, _teachers_model(workspace, _required(job.teacher, "teacher")))
    if STAGES[job.stage].trains_decoder and job.teacher is not None:
        init_decoder_from(model, _teachers_model(workspace, job.teacher))
    return model


def _teachers_model(workspace: Workspace, teacher: ArtefactRef) -> Segmenter:
    return load_model(workspace.artefacts.get(teacher).path / "model.safetensors")


def _teacher(
    workspace: Workspace, job: TrainerJob, device: torch.device, plan: Plan, columns: SliceColumns
) -> TeacherAnswers | None:
    """Return who answers for the teacher, or None where the stage asks no teacher."""
    if job.cache is None:
        return None
    teacher = _answers(workspace, job, job.cache, device)
    if plan.stage.question is not TEACHER_PROBABILITIES or job.config.mask_distillation_rule == "always":
        return teacher
    believed = [MODALITIES.index(name) for name in _required(job.teacher, "teacher").info[BELIEVED]]
    modality = columns.codes("modality")[plan.slots["row"].reshape(-1)]
    return BelievedTeacher(teacher, np.isin(modality, believed))


def _answers(workspace: Workspace, job: TrainerJob, answers: CacheRef, device: torch.device) -> TeacherAnswers:
    """Return who answers, from the cache or with the model."""
    if answers.mode == "cached":
        root = workspace.cache_root(answers.answers, answers.cache)
        cache = TeacherCache(root, fingerprint=answers.fingerprint)
        return CachedTeacher(cache.read)
    return OnlineTeacher(_teachers_model(workspace, _required(job.teacher, "teacher")).to(device))


def precision_on(device: torch.device, profile: Profile, stated: PrecisionSetting) -> PrecisionWish:
    """Return in which number format to train on a device.

    Args:
        device: Where the training runs.
        profile: Says whether CUDA takes automatic mixed precision.
        stated: The number format that the training states; any but float32 is taken as it is.
    """
    mixed = device.type == "cuda" and profile.training.mixed_precision
    return "mixed" if mixed and stated == "float32" else stated


def run_job(job: TrainerJob, log: logging.Logger) -> None:
    """Train the stage that a job describes; resumes where an earlier process was killed.

    Args:
        job: As `pipelines.training.students` makes it.
        log: Where progress is said, for example Dagster's log through Pipes.
    """
    keep_freed_memory()
    workspace = Workspace(read_settings({**os.environ, **job.settings}))
    config = job.config
    device = choose_device(workspace.profile)
    plan = load_plan(workspace, job.plan, config, STAGES[job.stage])
    every = max(1, plan.total_steps // 20)

    def on_metrics(step: int, values: dict[str, float]) -> None:
        if step % every == 0 or step + 1 == plan.total_steps:
            listing = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            log.info(f"step {step + 1} of {plan.total_steps}: {listing}")

    processes = ProcessGroup.from_environment(device)
    model = _model(workspace, job)
    reader = stage_reader(workspace, job.release, STAGES[job.stage])
    with _cache_in_use(workspace, job):
        run = TrainingRun(
            plan=plan,
            config=config,
            reader=reader,
            teacher=_teacher(workspace, job, device, plan, reader.columns),
            out=Path(job.out),
            keep_epochs=list(job.keep_epochs),
            fingerprint=job.fingerprint,
            clean_images=None if plan.stage.trains_decoder else _clean_images(plan, reader, model),
        )
        train(
            model,
            run,
            device=device,
            precision=precision_on(device, workspace.profile, job.precision),
            on_metrics=on_metrics,
            processes=processes,
            options=LoopOptions(checkpoint_steps=workspace.profile.training.checkpoint_steps),
        )
    processes.close()


def _cache_in_use(workspace: Workspace, job: TrainerJob) -> AbstractContextManager[None]:
    """Keep the cache that a job reads from being deleted or changed beneath it."""
    if job.cache is None or job.cache.mode != "cached":
        return nullcontext()
    root = workspace.cache_root(job.cache.answers, job.cache.cache)
    return reading_access(root)


def _clean_images(plan: Plan, reader: SliceReader, model: Segmenter) -> Callable[[], Iterable[Tensor]]:
    """Return a source of clean batches for the batch-norm statistics of a distilled encoder."""
    return lambda: clean_images(plan, reader, model.geometry, batches=RECALIBRATION_BATCHES)


def reason(error: BaseException) -> str | None:
    """Return why a training could not go on, in one line; None if the error is a defect of this project.

    torch hides an error of the disk behind one of its own, so what an error came from is looked at first.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None:
            return said_of(cause)
        cause = cause.__cause__ or cause.__context__
    return str(error) if isinstance(error, (StorageError, TrainingError, ProfileError, CheckpointError)) else None


def main() -> int:
    """Run the job file named on the command line; return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    require_parent()
    file = Path(sys.argv[1])
    job = from_json(TrainerJob, read_json(file), str(file), "materialise the asset that trains there again")
    if "DAGSTER_PIPES_CONTEXT" not in os.environ or os.environ.get("RANK", "0") != "0":
        run_job(job, logger)
        return 0
    with open_dagster_pipes() as pipes:
        try:
            run_job(job, pipes.log)
        except Exception as error:
            why = reason(error)
            pipes.report_custom_message(why or f"{type(error).__name__}: {error}")
            if why is None:
                raise
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
