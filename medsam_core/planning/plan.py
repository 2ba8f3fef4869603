"""The training plan: all random choices of training, drawn ahead and stored as data (`docs/adr/0020`).

What belongs here: what a plan depends on, and reading it by step number. Not here: how an epoch is drawn
(`plan_epoch`), pixels (`rendering`), or files: the caller stores the arrays.

A step takes `microbatches_per_step` microbatches of `microbatch_size` slots. Plan order is epoch by epoch, slot by
slot.

Legend: P epochs of the plan, n slots of an epoch, B slots of a microbatch, K labels of a slot.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from medsam_core.base.config import StageConfig
from medsam_core.base.data import SliceTable
from medsam_core.learning.stages import Stage
from medsam_core.planning.plan_epoch import EpochPlan, build_epoch, microbatch_dtype, slot_dtype

PLAN_VERSION = 1
"""Raised by hand whenever the same inputs give another plan."""


def plan_inputs(config: StageConfig, stage: Stage, image_size: int, seed: int) -> dict[str, object]:
    """Return, as a plain value, all that a plan depends on besides the slices themselves.

    What only the training loop reads (number of epochs beyond P, optimiser, losses) is left out, so variants that
    differ in nothing else share one plan and one teacher cache. The keys are hashed and keep their earlier names, in
    which a microbatch is a group.
    """
    jitter = stage.box_jitter(config)
    of_share = {"box_jitter_permille": jitter.permille, "box_jitter_inward": jitter.inward}
    return {
        "plan_version": PLAN_VERSION,
        "stage": stage.name,
        "image_size": image_size,
        "seed": seed,
        "plan_epochs": config.plan_epochs,
        "group_size": config.microbatch_size,
        "groups_per_step": config.microbatches_per_step,
        "epoch_slots": config.epoch_slots,
        "prompts_per_slot": stage.n_prompts(config),
        "box_jitter_px": jitter.px,
        **(of_share if jitter.permille else {}),
        "augmentation": config.augmentation.model_dump(mode="json"),
    }


@dataclass(frozen=True, eq=False)
class Plan:
    """A stage's plan and its reading by step number.

    Attributes:
        config: The stage's configuration.
        stage: Which of the two stages.
        slots: (P, n) of `slot_dtype`.
        microbatches: (P, n / B) of `microbatch_dtype`.
    """

    config: StageConfig
    stage: Stage
    slots: npt.NDArray[np.void]
    microbatches: npt.NDArray[np.void]

    @classmethod
    def build(cls, table: SliceTable, config: StageConfig, stage: Stage, image_size: int, seed: int) -> "Plan":
        """Build the P epochs of a plan; arguments and errors as in `build_epoch`."""
        epochs = [build_epoch(table, config, stage, image_size, seed, epoch) for epoch in range(config.plan_epochs)]
        slots = np.stack([epoch.slots for epoch in epochs])
        return cls(config, stage, slots, np.stack([epoch.microbatches for epoch in epochs]))

    @classmethod
    def from_arrays(cls, config: StageConfig, stage: Stage, arrays: Mapping[str, npt.NDArray[np.void]]) -> "Plan":
        """Make a plan of the arrays that `as_arrays` returned; memory-mapped arrays stay memory-mapped.

        Raises:
            ValueError: If the arrays are not those of a plan of this configuration.
        """
        slots, microbatches = arrays["slots"], arrays["groups"]
        patches = config.augmentation.mixpatch_grid**2
        expected = (
            slot_dtype(stage.n_prompts(config)),
            microbatch_dtype(config.microbatch_size, patches),
            (config.plan_epochs, slots.shape[-1] // config.microbatch_size),
        )
        found = (slots.dtype, microbatches.dtype, microbatches.shape)
        if expected != found or len(slots) != len(microbatches) or slots.shape[-1] % config.microbatch_size:
            raise ValueError(
                f"plan arrays: expected slots, microbatches and shape {expected}, found {found} with slots of shape "
                f"{slots.shape}; build the plan again for this configuration"
            )
        return cls(config, stage, slots, microbatches)

    def as_arrays(self) -> dict[str, npt.NDArray[np.void]]:
        """Return the plan as named arrays, each to be stored as one `.npy` file."""
        return {"slots": self.slots, "groups": self.microbatches}

    @property
    def epochs(self) -> list[EpochPlan]:
        """The P epochs of the plan."""
        return [
            EpochPlan(slots, microbatches) for slots, microbatches in zip(self.slots, self.microbatches, strict=True)
        ]

    @property
    def slots_per_epoch(self) -> int:
        """Slots of an epoch, n."""
        return int(self.slots.shape[1])

    @property
    def microbatches_per_epoch(self) -> int:
        """Microbatches of an epoch, n / B."""
        return int(self.microbatches.shape[1])

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch."""
        return self.microbatches_per_epoch // self.config.microbatches_per_step

    @property
    def n_plan_slots(self) -> int:
        """Slots of the whole plan, P * n: the length of a teacher cache."""
        return int(self.slots.size)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole training, replayed epochs included."""
        return self.config.epochs * self.steps_per_epoch

    def locate(self, step: int) -> tuple[int, int, int]:
        """Return the epoch of a step, the plan epoch it replays, and its first microbatch within that epoch.

        Raises:
            ValueError: If training has no such step.
        """
        if not 0 <= step < self.total_steps:
            raise ValueError(f"step: expected 0 <= step < {self.total_steps}, found {step}")
        epoch, within = divmod(step, self.steps_per_epoch)
        return epoch, epoch % len(self.slots), within * self.config.microbatches_per_step

    def microbatch_slots(self, plan_epoch: int, microbatch: int) -> tuple[npt.NDArray[np.void], np.void, int]:
        """Return a microbatch's slots (B,), its mixing record, and the place of its first slot in plan order."""
        start = microbatch * self.config.microbatch_size
        slots = self.slots[plan_epoch, start : start + self.config.microbatch_size]
        return slots, self.microbatches[plan_epoch, microbatch], plan_epoch * self.slots_per_epoch + start

    def coverage(self, table: SliceTable) -> pd.DataFrame:
        """Return, by modality that has drawable slices: `drawable` slices, `slots`, and `distinct` slices shown.

        With fewer plan epochs than epochs the student sees fewer distinct slices; this table says how many.
        """
        names = np.array(table.modalities, dtype=object)[table.modality]
        rows = self.slots["row"].reshape(-1)
        counts = {
            "drawable": pd.Series(names[table.drawable()]).value_counts(),
            "slots": pd.Series(names[rows]).value_counts(),
            "distinct": pd.Series(names[np.unique(rows)]).value_counts(),
        }
        present = [name for name in table.modalities if name in counts["drawable"]]
        frame = pd.DataFrame(counts).reindex(present).fillna(0).astype("int64")
        return frame.rename_axis("modality").reset_index()
