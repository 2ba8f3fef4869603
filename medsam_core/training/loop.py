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
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from medsam_core.config import StageConfig
from medsam_core.data import SliceReader
from medsam_core.models.checkpoints import read_metadata, save_model
from medsam_core.models.segmenter import Segmenter
from medsam_core.plan import Plan, Stage
from medsam_core.training.batchnorm import recalibrate_batchnorm
from medsam_core.training.checkpoint import (
    MetricsLog,
    load_checkpoint,
    output_lock,
    require_same_training,
    save_checkpoint,
)
from medsam_core.training.errors import TrainingError
from medsam_core.training.loading import GroupLoader
from medsam_core.training.precision import Precision
from medsam_core.training.process_group import ProcessGroup
from medsam_core.training.stages import require_teacher
from medsam_core.training.step import Stepper
from medsam_core.training.teachers import TeacherAnswers

CHECKPOINT_NAME = "checkpoint.pt"
METRICS_NAME = "metrics.jsonl"
WEIGHTS_NAME = "model.safetensors"

TRAINING = "training"
"""Metadata key of published weights: what they were trained from and after how many steps, as JSON."""

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
    processes: ProcessGroup | None = None,
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
        processes: The processes that share every step; each calls this function.
        fingerprint: What all of this was made from; a folder of another fingerprint is refused.
        clean_images: Gives batches of clean images (`batchnorm.clean_images`), on which the batch-norm statistics of
            published weights are recalibrated; the training itself goes on with its own. None publishes those.
        options: How to carry it out.

    Raises:
        OutputBusyError: If another process trains into `out`.
        DivergedError: If a loss, gradient or weight is not finite; checkpoints stay as they were.
        TrainingError: If the settings do not go together, or `out` belongs to another training.
    """
    processes, device = processes or ProcessGroup(), torch.device(device)
    _check(stage, plan, config, teacher, keep_epochs, processes)
    options = options or LoopOptions()
    precision = Precision(device, amp=amp)
    stepper = Stepper(
        stage,
        segmenter.to(device),
        plan,
        config,
        teacher,
        device=device,
        precision=precision,
        processes=processes,
        channels_last=options.channels_last,
    )
    loader = GroupLoader(
        stage=stage,
        plan=plan,
        reader=reader,
        teacher=teacher,
        config=config,
        geometry=segmenter.geometry,
        processes=processes,
        prefetch=options.prefetch,
        threads=options.loader_threads,
    )
    run = _Run(
        out=out,
        stepper=stepper,
        loader=loader,
        plan=plan,
        processes=processes,
        identity=_identity(stage, config, precision, fingerprint),
        checkpoint_steps=options.checkpoint_steps,
        keep_epochs=frozenset(keep_epochs),
        on_metrics=on_metrics,
        clean_images=clean_images,
    )
    with output_lock(out) if processes.leads else nullcontext():
        return run.go()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Run:
    """One call of `train`."""

    out: Path
    stepper: Stepper
    loader: GroupLoader
    plan: Plan
    processes: ProcessGroup
    identity: dict[str, str]
    checkpoint_steps: int
    keep_epochs: frozenset[int]
    on_metrics: OnMetrics | None
    clean_images: Callable[[], Iterable[Tensor]] | None

    def go(self) -> TrainResult:
        """Resume, train to the end, publish."""
        weights = self.out / WEIGHTS_NAME
        if weights.exists():
            self._require_own(weights)
            return self._result(self.plan.total_steps)
        self.processes.broadcast_(list(self.stepper.segmenter.state_dict().values()))
        first_step, log_length = self._resume()
        with MetricsLog(self.out / METRICS_NAME, log_length) if self.processes.leads else nullcontext() as log:
            self._steps(first_step, log)
        if self.processes.leads:
            self._publish(weights, self.plan.total_steps)
        logger.info("trained %d steps into %s", self.plan.total_steps - first_step, self.out)
        return self._result(first_step)

    def _require_own(self, weights: Path) -> None:
        """Refuse finished weights of another training."""
        found = json.loads(read_metadata(weights).get(TRAINING, "{}"))
        found.pop("step", None)
        require_same_training(weights, self.identity, found)

    def _resume(self) -> tuple[int, int]:
        """Take up the last checkpoint; return the next step and the length of the log at that point."""
        path = self.out / CHECKPOINT_NAME
        if not path.exists():
            return 0, 0
        stepper = self.stepper
        state = load_checkpoint(path, next(stepper.segmenter.parameters()).device, self.identity)
        stepper.segmenter.load_state_dict(state["model"])
        stepper.optimizer.load_state_dict(state["optimizer"])
        stepper.precision.load_state_dict(state["scaler"])
        logger.info("resuming %s at step %d", self.out, state["step"])
        return int(state["step"]), int(state["log_length"])

    def _steps(self, first_step: int, log: MetricsLog | None) -> None:
        per_step = len(range(self.processes.rank, self.plan.config.groups_per_step, self.processes.size))
        with closing(self.loader.groups_from(first_step)) as groups:
            for step in range(first_step, self.plan.total_steps):
                started = time.perf_counter()
                record = self.stepper.run(step, itertools.islice(groups, per_step))
                if log is not None:
                    log.write(record)
                    self._report(step, record, time.perf_counter() - started)
                    self._save(step + 1, log)

    def _report(self, step: int, record: dict[str, float], seconds: float) -> None:
        if self.on_metrics is not None:
            images = self.plan.config.groups_per_step * self.plan.config.group_size
            self.on_metrics(step, {**record, "images_per_second": images / seconds})

    def _save(self, done: int, log: MetricsLog) -> None:
        """Keep what is due after `done` steps; an epoch's weights come first, lest a kill between the two lose them."""
        epoch, within = divmod(done, self.plan.steps_per_epoch)
        if within == 0 and epoch in self.keep_epochs:
            self._publish(self._epoch_path(epoch), done)
        if within == 0 or done % self.checkpoint_steps == 0:
            stepper = self.stepper
            state = {
                "identity": self.identity,
                "step": done,
                "log_length": log.sync(),
                "model": stepper.segmenter.state_dict(),
                "optimizer": stepper.optimizer.state_dict(),
                "scaler": stepper.precision.state_dict(),
            }
            save_checkpoint(self.out / CHECKPOINT_NAME, state)

    def _publish(self, path: Path, done: int) -> None:
        """Write the weights as they are now, with batch-norm statistics of clean images where there are some."""
        model = self.stepper.segmenter
        if self.clean_images is not None:
            model = copy.deepcopy(model)
            recalibrate_batchnorm(model, self.clean_images())
        save_model(path, model, {TRAINING: json.dumps({**self.identity, "step": str(done)}, sort_keys=True)})

    def _epoch_path(self, epoch: int) -> Path:
        return self.out / f"epoch_{epoch:02d}.safetensors"

    def _result(self, first_step: int) -> TrainResult:
        lost = [epoch for epoch in sorted(self.keep_epochs) if not self._epoch_path(epoch).exists()]
        if self.processes.leads and lost:
            raise TrainingError(
                f"{self.out}: expected weights of epochs {lost}, found none: they were asked for after the run had "
                "passed them; train into an empty folder"
            )
        return TrainResult(
            weights=self.out / WEIGHTS_NAME,
            epoch_weights={epoch: self._epoch_path(epoch) for epoch in sorted(self.keep_epochs)},
            metrics=self.out / METRICS_NAME,
            steps=self.plan.total_steps,
            first_step=first_step,
        )


def _identity(stage: Stage, config: StageConfig, precision: Precision, fingerprint: str) -> dict[str, str]:
    """Return what a folder must have been made from to be gone on with.

    A caller's fingerprint covers the settings, and knows better which of them make a difference: `cached_epochs` of all
    epochs is the same training as none. Without one the settings speak for themselves.
    """
    if fingerprint:
        return {"stage": stage, "precision": precision.name, "fingerprint": fingerprint}
    settings = {f"config.{name}": json.dumps(value) for name, value in config.model_dump(mode="json").items()}
    return {"stage": stage, "precision": precision.name, "fingerprint": fingerprint, **settings}


def _check(
    stage: Stage,
    plan: Plan,
    config: StageConfig,
    teacher: TeacherAnswers | None,
    keep_epochs: Sequence[int],
    processes: ProcessGroup,
) -> None:
    """Refuse settings that do not go together."""
    require_teacher(stage, config, teacher)
    wanted = (stage, config.epochs, config.group_size, config.groups_per_step)
    found = (plan.stage, plan.config.epochs, plan.config.group_size, plan.config.groups_per_step)
    if wanted != found:
        raise TrainingError(
            f"plan: expected one of stage, epochs, group size and groups per step {wanted}, found {found}; "
            "build or load the plan with this configuration"
        )
    if processes.size > config.groups_per_step:
        raise TrainingError(
            f"processes: expected at most one for each of the {config.groups_per_step} groups of a step, "
            f"found {processes.size}; start fewer, or raise groups_per_step"
        )
    strange = [epoch for epoch in keep_epochs if not 1 <= epoch <= config.epochs]
    if strange:
        raise TrainingError(f"keep_epochs: expected numbers from 1 to {config.epochs}, found {strange}; correct them")
