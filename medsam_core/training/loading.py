"""From step numbers to what a step works on. What belongs here: reading the plan, rendering, reading cached answers.

Not here: what is done with a microbatch (`medsam_core.training.step`).
"""

import itertools
from collections.abc import Generator
from dataclasses import dataclass

from torch import Tensor

from medsam_core.base.geometry import Geometry
from medsam_core.imaging.rendering import Microbatch, render_microbatch
from medsam_core.training.prefetch import prefetched
from medsam_core.training.process_group import ProcessGroup
from medsam_core.training.run import TrainingRun


@dataclass(frozen=True, eq=False)
class LoadedMicrobatch:
    """A microbatch as the loading thread hands it over.

    Attributes:
        position: Its place among the microbatches of its step, from 0.
        first_slot: Place of its first slot in plan order.
        batch: The rendered microbatch, on the CPU.
        answers: The teacher's answers where they are read ahead, else None.
    """

    position: int
    first_slot: int
    batch: Microbatch
    answers: Tensor | None


@dataclass(frozen=True, eq=False)
class MicrobatchLoader:
    """Loads the microbatches that fall to this process, in plan order, from any step on.

    Attributes:
        run: Names plan and reader, and the teacher, who is asked here where answers are read rather than computed.
        geometry: Of the model in training.
        processes: Those that share a step.
        prefetch: Microbatches loaded ahead.
        threads: Threads that load them.
    """

    run: TrainingRun
    geometry: Geometry
    processes: ProcessGroup
    prefetch: int
    threads: int

    def microbatches_from(self, step: int) -> Generator[LoadedMicrobatch, None, None]:
        """Yield this process's microbatches from `step` on: of each step, rank r takes microbatches r, r + size, ..."""
        mine = range(self.processes.rank, self.run.config.microbatches_per_step, self.processes.size)
        keys = itertools.product(range(step, self.run.plan.total_steps), mine)
        return prefetched(self._load, keys, ahead=self.prefetch, threads=self.threads)

    def _load(self, key: tuple[int, int]) -> LoadedMicrobatch:
        step, position = key
        plan, teacher = self.run.plan, self.run.teacher
        _, plan_epoch, first_microbatch = plan.locate(step)
        slots, microbatch, first_slot = plan.microbatch_slots(plan_epoch, first_microbatch + position)
        batch = render_microbatch(slots, microbatch, self.run.reader, self.geometry)
        answers = None
        if teacher is not None and teacher.reads_ahead:
            answers = self.run.stage.ask(self.run.config, teacher, first_slot, batch)
        return LoadedMicrobatch(position, first_slot, batch, answers)
