"""The training loop of both stages. What belongs here: the order of steps, resuming, and when weights are published.

Not here: what a run is made from and its folder (`medsam_core.training.run`), the step itself (`.step`), trackers.

The result of a run depends on model, plan, teacher and settings. A run that is stopped and resumed gives the same
weights and the same bytes of `metrics.jsonl`; the number of processes changes results by rounding only.
"""

import copy
import itertools
import json
import logging
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from medsam_core.models.checkpoints import read_metadata, save_model
from medsam_core.models.segmenter import Segmenter
from medsam_core.training.batchnorm import recalibrate_batchnorm
from medsam_core.training.checkpoint import (
    MetricsLog,
    TrainingState,
    load_checkpoint,
    output_lock,
    require_same_training,
    save_checkpoint,
)
from medsam_core.training.errors import TrainingError
from medsam_core.training.loading import MicrobatchLoader
from medsam_core.training.precision_choice import PrecisionWish, settle_precision
from medsam_core.training.process_group import ProcessGroup
from medsam_core.training.run import TRAINING, TrainingRun, TrainResult
from medsam_core.training.step import Stepper

OnMetrics = Callable[[int, dict[str, float]], None]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """How a run is carried out; none of it changes the result.

    Attributes:
        checkpoint_steps: Steps between two checkpoints; every epoch ends with one besides.
        prefetch: Microbatches loaded ahead of the step, which bounds memory.
        loader_threads: Threads that load them; more than one needs a reader that threads can share.
    """

    checkpoint_steps: int = 500
    prefetch: int = 2
    loader_threads: int = 1


def train(
    segmenter: Segmenter,
    run: TrainingRun,
    *,
    device: torch.device | str = "cpu",
    precision: PrecisionWish = "float32",
    on_metrics: OnMetrics | None = None,
    processes: ProcessGroup | None = None,
    options: LoopOptions | None = None,
) -> TrainResult:
    """Train one stage to its end, going on from where an earlier call was stopped.

    Args:
        segmenter: The model at its start; changed in place, except where the run is found done. The published
            weights are those of the files.
        run: What to train from, and where to.
        device: Where to train.
        precision: Number format of the networks, or how it is chosen; a run that is resumed keeps what it chose.
        on_metrics: Called after every step with its number and record, plus `images_per_second`; on rank 0. Steps
            since the last checkpoint are reported again after a resume.
        processes: Those that share every step; each calls this function.
        options: How to carry it out.

    Raises:
        OutputBusyError: If another process trains into the folder.
        DivergedError: If a loss, gradient or weight is not finite; checkpoints stay as they were.
        TrainingError: If the settings do not go together, or the folder belongs to another training.
    """
    processes, device, options = processes or ProcessGroup(), torch.device(device), options or LoopOptions()
    run.check(processes)
    with output_lock(run.out) if processes.leads else nullcontext():
        chosen = settle_precision(segmenter.to(device), run, device, precision, processes)
        loop = _Loop(
            run=run,
            stepper=Stepper(segmenter, run, chosen, processes),
            loader=MicrobatchLoader(run, segmenter.geometry, processes, options.prefetch, options.loader_threads),
            processes=processes,
            checkpoint_steps=options.checkpoint_steps,
            on_metrics=on_metrics,
        )
        return loop.go()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Loop:
    """One call of `train`."""

    run: TrainingRun
    stepper: Stepper
    loader: MicrobatchLoader
    processes: ProcessGroup
    checkpoint_steps: int
    on_metrics: OnMetrics | None

    @property
    def identity(self) -> dict[str, str]:
        return self.run.identity(self.stepper.precision.name)

    def go(self) -> TrainResult:
        """Resume, train to the end, publish."""
        weights, total = self.run.weights, self.run.plan.total_steps
        if weights.exists():
            self._require_own(weights)
            return self._result(total)
        self.processes.broadcast_(list(self.stepper.segmenter.state_dict().values()))
        first_step, log_length = self._resume()
        with MetricsLog(self.run.metrics, log_length) if self.processes.leads else nullcontext() as log:
            self._steps(first_step, log)
        if self.processes.leads:
            self._publish(weights, total)
        logger.info("trained %d steps into %s", total - first_step, self.run.out)
        return self._result(first_step)

    def _require_own(self, weights: Path) -> None:
        """Refuse finished weights of another training."""
        found = json.loads(read_metadata(weights).get(TRAINING, "{}"))
        found.pop("step", None)
        require_same_training(weights, self.identity, found)

    def _resume(self) -> tuple[int, int]:
        """Take up the last checkpoint; return the next step and the length of the log at that point."""
        path = self.run.checkpoint
        if not path.exists():
            return 0, 0
        stepper = self.stepper
        state = load_checkpoint(path, next(stepper.segmenter.parameters()).device, self.identity)
        stepper.segmenter.load_state_dict(state["model"])
        stepper.optimizer.load_state_dict(state["optimizer"])
        stepper.precision.load_state_dict(state["scaler"])
        logger.info("resuming %s at step %d", self.run.out, state["step"])
        return int(state["step"]), int(state["log_length"])

    def _steps(self, first_step: int, log: MetricsLog | None) -> None:
        per_step = len(range(self.processes.rank, self.run.config.microbatches_per_step, self.processes.size))
        with closing(self.loader.microbatches_from(first_step)) as microbatches:
            for step in range(first_step, self.run.plan.total_steps):
                started = time.perf_counter()
                record = self.stepper.run(step, itertools.islice(microbatches, per_step))
                if log is not None:
                    log.write(record)
                    self._report(step, record, time.perf_counter() - started)
                    self._save(step + 1, log)

    def _report(self, step: int, record: dict[str, float], seconds: float) -> None:
        if self.on_metrics is not None:
            images = self.run.config.microbatches_per_step * self.run.config.microbatch_size
            self.on_metrics(step, {**record, "images_per_second": images / seconds})

    def _save(self, done: int, log: MetricsLog) -> None:
        """Keep what is due after `done` steps; weights of an epoch come first, so that a kill in between loses none."""
        epoch, within = divmod(done, self.run.plan.steps_per_epoch)
        if within == 0 and epoch in self.run.keep_epochs:
            self._publish(self.run.epoch_weights(epoch), done)
        if within == 0 or done % self.checkpoint_steps == 0:
            stepper = self.stepper
            state: TrainingState = {
                "identity": self.identity,
                "step": done,
                "log_length": log.sync(),
                "model": stepper.segmenter.state_dict(),
                "optimizer": stepper.optimizer.state_dict(),
                "scaler": stepper.precision.state_dict(),
            }
            save_checkpoint(self.run.checkpoint, state)

    def _publish(self, path: Path, done: int) -> None:
        """Write the weights as they are now, with batch-norm statistics of clean images where there are some."""
        model = self.stepper.segmenter
        if self.run.clean_images is not None:
            model = copy.deepcopy(model)
            recalibrate_batchnorm(model, self.run.clean_images())
        save_model(path, model, {TRAINING: json.dumps({**self.identity, "step": str(done)}, sort_keys=True)})

    def _result(self, first_step: int) -> TrainResult:
        lost = [epoch for epoch in sorted(self.run.keep_epochs) if not self.run.epoch_weights(epoch).exists()]
        if self.processes.leads and lost:
            raise TrainingError(
                f"{self.run.out}: expected weights of epochs {lost}, found none: they were asked for after the run had "
                "passed them; train into an empty folder"
            )
        return TrainResult(
            weights=self.run.weights,
            epoch_weights={epoch: self.run.epoch_weights(epoch) for epoch in sorted(self.run.keep_epochs)},
            metrics=self.run.metrics,
            steps=self.run.plan.total_steps,
            first_step=first_step,
        )
