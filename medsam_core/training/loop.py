"""The training loop of both stages. What belongs here: the order of steps, loading, resuming, and what is published.

Not here: the step itself (`medsam_core.training.step`), what a stage learns (`.stages`), trackers, asset graphs.

A run is a function of model, plan, teacher and settings: stopped anywhere and started again it ends in the same
weights and the same bytes of `metrics.jsonl`, and how many processes share a step changes results by rounding only.

The folder of a run, written by rank 0 alone:
    checkpoint.pt          model, optimiser, loss scale and step; replaced at every checkpoint
    metrics.jsonl          one record a step
    epoch_XX.safetensors   weights after that many epochs, for those asked for
    model.safetensors      the final weights, written last: its presence means that the run is done
"""

import copy
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from medsam_core.config import StageConfig
from medsam_core.data import SliceReader
from medsam_core.models.checkpoints import read_metadata, save_model
from medsam_core.models.layers import STRIDE
from medsam_core.models.segmenter import Segmenter
from medsam_core.plan import Plan, Stage
from medsam_core.rendering import GroupBatch, render_group
from medsam_core.training.batchnorm import recalibrate_batchnorm
from medsam_core.training.checkpoint import (
    MetricsLog,
    appearing,
    load_checkpoint,
    output_lock,
    require_finite_weights,
    require_same_training,
    save_checkpoint,
)
from medsam_core.training.errors import TrainingError
from medsam_core.training.precision import Precision
from medsam_core.training.prefetch import prefetched
from medsam_core.training.stages import ask_teacher, require_teacher
from medsam_core.training.step import LoadedGroup, Stepper
from medsam_core.training.teachers import TeacherAnswers
from medsam_core.training.world import World

CHECKPOINT_NAME = "checkpoint.pt"
METRICS_NAME = "metrics.jsonl"
WEIGHTS_NAME = "model.safetensors"

LOGITS_STRIDE = STRIDE // 4
"""Pixels of the model frame a side of a cell of the low-resolution logits: SAM's decoder upscales by 4."""

OnMetrics = Callable[[int, dict[str, float]], None]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What a run left behind.

    Attributes:
        weights: The final weights.
        epoch_weights: Weights by number of epochs trained, for `keep_epochs`.
        metrics: The log of steps.
        steps: Steps of the whole training.
        first_step: Step this call went on from: 0 for a fresh start, `steps` where there was nothing left to do.
    """

    weights: Path
    epoch_weights: dict[int, Path]
    metrics: Path
    steps: int
    first_step: int


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """How a run is carried out, none of which changes what it computes.

    Attributes:
        checkpoint_steps: Steps between two checkpoints; every epoch ends with one besides.
        prefetch: Groups loaded ahead of the step, which bounds memory.
        loader_threads: Threads that load them; more than one needs a reader that threads can share.
        channels_last: Train in that memory layout, which convolutions may prefer.
    """

    checkpoint_steps: int = 500
    prefetch: int = 2
    loader_threads: int = 1
    channels_last: bool = False


def train(
    stage: Stage,
    segmenter: Segmenter,
    plan: Plan,
    reader: SliceReader,
    teacher: TeacherAnswers | None,
    config: StageConfig,
    out: Path,
    *,
    device: torch.device | str = "cpu",
    amp: bool = False,
    on_metrics: OnMetrics | None = None,
    keep_epochs: Sequence[int] = (),
    world: World | None = None,
    fingerprint: str = "",
    clean_images: Callable[[], Iterable[Tensor]] | None = None,
    options: LoopOptions | None = None,
) -> TrainResult:
    """Train one stage to its end, going on from where an earlier call was stopped.

    Args:
        stage: `distillation` trains the image encoder; `finetuning` trains the whole model.
        segmenter: The model at its start; changed in place, except where the run is found done. The published
            weights are those of the files.
        plan: Which slots every step shows.
        reader: Reads the slices that the plan names.
        teacher: Answers for the teacher; None in fine-tuning without `mask_distillation`.
        config: The stage; variants may share a plan and differ here in what the plan does not depend on.
        out: Folder of the run.
        device: Where to train.
        amp: Use automatic mixed precision; CUDA only.
        on_metrics: Called after every step with its number and record, plus `images_per_second`; on rank 0. Steps
            since the last checkpoint are reported again after a resume.
        keep_epochs: Numbers of epochs, from 1, after which weights are kept.
        world: The processes that share every step; each calls this function.
        fingerprint: What all of this was made from; a folder of another fingerprint is refused.
        clean_images: Gives batches of clean images (`batchnorm.clean_images`), on which the batch-norm statistics of
            published weights are recalibrated; the training itself goes on with its own. None publishes those.
        options: How to carry it out.

    Raises:
        OutputBusyError: If another process trains into `out`.
        DivergedError: If a loss, gradient or weight is not finite; checkpoints stay as they were.
        TrainingError: If the settings do not go together, or `out` belongs to another training.
    """
    world = world or World()
    _check(stage, plan, config, teacher, keep_epochs, world)
    device = torch.device(device)
    precision = Precision(device, amp=amp)
    run = _Run(stage, segmenter.to(device), plan, reader, teacher, config, out, device, precision, world)
    run.identity = _identity(stage, config, precision, fingerprint)
    run.options, run.on_metrics, run.clean_images = options or LoopOptions(), on_metrics, clean_images
    run.keep_epochs = tuple(sorted(set(keep_epochs)))
    with output_lock(out) if world.leads else nullcontext():
        return run.go()


@dataclass(eq=False)
class _Run:
    """The state of one call of `train`."""

    stage: Stage
    segmenter: Segmenter
    plan: Plan
    reader: SliceReader
    teacher: TeacherAnswers | None
    config: StageConfig
    out: Path
    device: torch.device
    precision: Precision
    world: World
    identity: Mapping[str, str] = field(default_factory=dict)
    options: LoopOptions = field(default_factory=LoopOptions)
    on_metrics: OnMetrics | None = None
    clean_images: Callable[[], Iterable[Tensor]] | None = None
    keep_epochs: tuple[int, ...] = ()
