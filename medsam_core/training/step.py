"""One optimiser step. What belongs here: gradients over the microbatches of a step, across processes, and the update.

Not here: the order of steps and files (`medsam_core.training.loop`), or what a stage learns
(`medsam_core.learning.stages`).

The networks use no random numbers in training, as all random choices are in the plan. So a step depends on weights,
optimiser state and step number alone. Its gradient is the mean over its microbatches, of all processes.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medsam_core.base.config import StageConfig
from medsam_core.imaging.rendering import Microbatch
from medsam_core.models.segmenter import Segmenter
from medsam_core.training.batchnorm import StepStatistics
from medsam_core.training.errors import DivergedError, TrainingError
from medsam_core.training.loading import LoadedMicrobatch
from medsam_core.training.precision import Precision
from medsam_core.training.process_group import ProcessGroup
from medsam_core.training.run import TrainingRun


class Stepper:
    """Takes steps: holds the trained parameters, their optimiser and the loss scale.

    Args:
        segmenter: The model in training, on its device; prepared for the stage here.
        run: Names stage, plan, configuration and teacher.
        precision: Number format of the networks, and their memory layout.
        processes: Those that share a step.
    """

    def __init__(self, segmenter: Segmenter, run: TrainingRun, precision: Precision, processes: ProcessGroup) -> None:
        self.segmenter = segmenter
        self.precision = precision
        self.trained = run.stage.prepare(segmenter)
        self.optimizer = _build_optimizer(list(self.trained.values()), run.config)
        self._training, self._processes = run, processes
        self._stage, self._plan, self._config = run.stage, run.plan, run.config
        self._device = next(segmenter.parameters()).device
        self._terms = run.stage.terms(run.config)
        self._statistics = StepStatistics(segmenter)
        segmenter.to(memory_format=precision.layout)  # type: ignore[call-overload]  # missing from torch's stubs

    def run(self, step: int, microbatches: Iterable[LoadedMicrobatch]) -> dict[str, float]:
        """Take one step.

        Args:
            step: Its number, from 0.
            microbatches: Those of the step's microbatches that fall to this process.

        Returns:
            The step's record, equal on every process: `step`, `epoch` (from 1), the loss and its terms (means over
            microbatches), `lr`, `images` (seen since the first step), `small_objects` (in this step, kept by
            max-pooling), `grad_norm` before clipping, or `skipped` = 1 where the float16 loss scale was too large for
            the step.

        Raises:
            DivergedError: If a loss or gradient is not finite; weights and optimiser are as before the step.
        """
        epoch = self._plan.locate(step)[0]
        rate = self._config.optimiser.rate(epoch)
        table = self._accumulate(microbatches)
        self._require_finite_losses(step, table)
        grad_norm = self._update(step, rate)
        means = dict(zip(self._terms, table[:, :-1].mean(dim=0).tolist(), strict=True))
        images = (step + 1) * self._config.microbatches_per_step * self._config.microbatch_size
        record: dict[str, float] = {"step": step, "epoch": epoch + 1, **means, "lr": rate, "images": images}
        record["small_objects"] = table[:, -1].sum().item()
        return record | ({"grad_norm": grad_norm} if math.isfinite(grad_norm) else {"skipped": 1.0})

    def _accumulate(self, microbatches: Iterable[LoadedMicrobatch]) -> Tensor:
        """Sum the step's gradients; return (microbatches, terms + 1) float64: losses and numbers of small objects."""
        count = self._config.microbatches_per_step
        table = torch.zeros((count, len(self._terms) + 1), dtype=torch.float64, device=self._device)
        self.optimizer.zero_grad()
        self._statistics.begin_step()
        for microbatch in microbatches:
            table[microbatch.position] = self._backward(microbatch)
            self._statistics.end_microbatch()
        self._statistics.end_step(self._processes, count)
        self._processes.sum_all_(self._gradients())
        return self._processes.sum_(table).cpu()

    def _backward(self, microbatch: LoadedMicrobatch) -> Tensor:
        """Add a microbatch's gradients; return (terms + 1,): its losses and its number of small objects."""
        batch = self._on_device(microbatch.batch)
        answers = self._answers(microbatch, batch)
        with self.precision.autocast():
            losses = self._stage.losses(self._config, self.segmenter, batch, answers)
        self.precision.scaler.scale(losses[0] / self._config.microbatches_per_step).backward()  # type: ignore[no-untyped-call]
        row = torch.stack([*(loss.detach() for loss in losses), losses[0].new_tensor(batch.n_small)])
        return row.double()

    def _answers(self, microbatch: LoadedMicrobatch, batch: Microbatch) -> Tensor | None:
        """Return the teacher's answers on the device, as read ahead or asked for now."""
        if microbatch.answers is not None:
            return microbatch.answers.to(self._device, non_blocking=True)
        with self.precision.teacher_autocast():
            return self._stage.ask(self._config, self._training.teacher, microbatch.first_slot, batch)

    def _on_device(self, batch: Microbatch) -> Microbatch:
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(self._device, non_blocking=True)

        images = move(batch.images).contiguous(memory_format=self.precision.layout)
        return replace(batch, images=images, boxes=move(batch.boxes), masks=move(batch.masks))

    def _gradients(self) -> list[Tensor]:
        missing = [name for name, parameter in self.trained.items() if parameter.grad is None]
        if missing:
            raise TrainingError(
                f"{self._stage.name}: expected a gradient for every trained tensor, found none for {len(missing)} "
                f"({', '.join(missing[:3])}, ...); leave out of the stage's `trains` what the loss does not reach"
            )
        return [parameter.grad for parameter in self.trained.values() if parameter.grad is not None]

    def _update(self, step: int, rate: float) -> float:
        """Clip and apply the gradients; return their norm before clipping, not finite where the step was skipped."""
        for settings in self.optimizer.param_groups:
            settings["lr"] = rate
        scaler = self.precision.scaler
        scaler.unscale_(self.optimizer)
        limit = self._config.optimiser.clip_norm
        norm = float(torch.nn.utils.clip_grad_norm_(self.trained.values(), limit))
        if not math.isfinite(norm) and not scaler.is_enabled():
            everything = range(self._config.microbatches_per_step)
            raise DivergedError(self._diverged(step, f"gradient norm {norm}", everything))
        scaler.step(self.optimizer)
        scaler.update()
        return norm

    def _require_finite_losses(self, step: int, table: Tensor) -> None:
        bad = [position for position, row in enumerate(table.isfinite().all(dim=1).tolist()) if not row]
        if bad:
            losses = ", ".join(f"{name} {value}" for name, value in zip(self._terms, table[bad[0]], strict=False))
            raise DivergedError(self._diverged(step, losses, bad))

    def _diverged(self, step: int, found: str, positions: Sequence[int]) -> str:
        """Return the message that names step, slots of the plan and slices of a value that is not finite."""
        epoch, plan_epoch, first_microbatch = self._plan.locate(step)
        places = []
        for position in positions:
            slots, _, first_slot = self._plan.microbatch_slots(plan_epoch, first_microbatch + position)
            rows: npt.NDArray[np.int32] = slots["row"]
            places.append(f"slots {first_slot} to {first_slot + len(slots) - 1} (rows {rows.tolist()})")
        return (
            f"step {step} (epoch {epoch + 1}): expected finite losses and gradients, found {found} in plan "
            f"{'; '.join(places)}; the last checkpoint is untouched: look at these slices, lower the learning rate "
            "or train in float32, then run again"
        )


def _build_optimizer(parameters: list[torch.nn.Parameter], config: StageConfig) -> torch.optim.AdamW:
    settings = config.optimiser
    return torch.optim.AdamW(
        parameters, lr=settings.rate(0), eps=settings.epsilon, weight_decay=settings.weight_decay, fused=True
    )
