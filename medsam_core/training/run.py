"""What a training run is: its inputs and its folder. What belongs here: those, their checks, and the run's identity.

Not here: the steps (`medsam_core.training.loop`, `.step`), or what a stage learns (`medsam_core.learning.stages`).

The folder of a run, written by rank 0 alone:
    checkpoint.pt          model, optimiser, loss scale and step; replaced at every checkpoint
    metrics.jsonl          one record a step
    precision.json         number format and why, unless it is float32 as asked for
    epoch_XX.safetensors   weights after that many epochs, for those asked for
    model.safetensors      the final weights, written last: its presence means that the run is done
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from medsam_core.base.config import StageConfig
from medsam_core.base.data import SliceReader
from medsam_core.learning.stages import Stage
from medsam_core.learning.teachers import TeacherAnswers
from medsam_core.planning.plan import Plan
from medsam_core.training.errors import TrainingError
from medsam_core.training.process_group import ProcessGroup

TRAINING = "training"
"""Metadata key of published weights: what they were trained from and after how many steps, as JSON."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingRun:
    """All that a run computes from, besides the model at its start.

    Attributes:
        plan: Which slots every step shows, and of which stage it is a plan.
        config: The stage; variants may share a plan and differ here in what the plan does not depend on.
        reader: Reads the slices that the plan names.
        teacher: Answers for the teacher; None where the stage asks no teacher.
        out: Folder of the run.
        keep_epochs: Numbers of epochs, from 1, after which weights are kept.
        fingerprint: What all of this was made from; a folder of another fingerprint is refused.
        clean_images: Gives batches of clean images (`batchnorm.clean_images`), on which the batch-norm statistics of
            published weights are recalibrated; the training itself goes on with its own. None publishes those.
    """

    plan: Plan
    config: StageConfig
    reader: SliceReader
    teacher: TeacherAnswers | None
    out: Path
    keep_epochs: Sequence[int] = ()
    fingerprint: str = ""
    clean_images: Callable[[], Iterable[Tensor]] | None = None

    @property
    def stage(self) -> Stage:
        """Which of the two stages."""
        return self.plan.stage

    @property
    def checkpoint(self) -> Path:
        """The last checkpoint."""
        return self.out / "checkpoint.pt"

    @property
    def metrics(self) -> Path:
        """The log of steps."""
        return self.out / "metrics.jsonl"

    @property
    def precision_record(self) -> Path:
        """Which number format the run settled on, and why."""
        return self.out / "precision.json"

    @property
    def weights(self) -> Path:
        """The final weights."""
        return self.out / "model.safetensors"

    def epoch_weights(self, epoch: int) -> Path:
        """Return the file of the weights after `epoch` epochs."""
        return self.out / f"epoch_{epoch:02d}.safetensors"

    def identity(self, precision: str) -> dict[str, str]:
        """Return the identity of the training, which a folder must have in order to be resumed.

        A fingerprint of the caller stands for the settings, as it leaves out differences that do not matter
        (`cached_epochs` of all epochs equals none). Without a fingerprint the settings themselves are compared.

        Args:
            precision: Number format of the networks.
        """
        known = {"stage": self.stage.name, "precision": precision, "fingerprint": self.fingerprint}
        if self.fingerprint:
            return known
        settings = self.config.model_dump(mode="json").items()
        return {**known, **{f"config.{name}": json.dumps(value) for name, value in settings}}

    def check(self, processes: ProcessGroup) -> None:
        """Refuse settings that contradict each other.

        Raises:
            TrainingError: If a teacher is missing, the plan is of another configuration, there are more processes than
                microbatches in a step, or an epoch to keep does not exist.
        """
        config = self.config
        if self.teacher is None and self.stage.asks(config):
            raise TrainingError(
                f"{self.stage.name}: expected a teacher, found none; give one, or fine-tune with mask_distillation off"
            )
        wanted = (config.epochs, config.microbatch_size, config.microbatches_per_step)
        found = (self.plan.config.epochs, self.plan.config.microbatch_size, self.plan.config.microbatches_per_step)
        if wanted != found:
            raise TrainingError(
                f"plan: expected (epochs, microbatch size, microbatches per step) {wanted}, found {found}; "
                "build or load the plan with this configuration"
            )
        if processes.size > config.microbatches_per_step:
            raise TrainingError(
                f"processes: expected at most {config.microbatches_per_step}, one for each microbatch of a step, found "
                f"{processes.size}; start fewer, or raise microbatches_per_step"
            )
        strange = [epoch for epoch in self.keep_epochs if not 1 <= epoch <= config.epochs]
        if strange:
            raise TrainingError(
                f"keep_epochs: expected numbers from 1 to {config.epochs}, found {strange}; correct them"
            )


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
