"""The training plan: everything random about training, decided ahead and stored as data: `docs/adr/0020`.

What belongs here: the layout of a plan, building it, and reading it by step number. Not here: the draws themselves
(`sampling`), pixels (`rendering`), or files: the caller stores the arrays.

A step takes `groups_per_step` groups of `group_size` slots. Plan order is epoch by epoch, slot by slot.
Legend: P epochs of the plan, n slots of an epoch, B slots of a group, K labels of a slot.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from medsam_core.config import StageConfig
from medsam_core.counter_rng import CounterRng
from medsam_core.data import SliceTable
from medsam_core.sampling import balanced_rows, draw_boxes, draw_labels, draw_mixing, draw_views
from medsam_core.stages import Stage

PLAN_VERSION = 1
"""Raised by hand whenever the same inputs give another plan."""


def slot_dtype(n_labels: int) -> np.dtype[np.void]:
    """Return the record of a slot with K = `n_labels` prompts.

    Fields: `row` in the slice table; `crop` (4,), native `xyxy_px`, half-open; `flip_x`, `flip_y`; `quarter_turns`;
    `labels` (K,), original ids; `boxes` (K, 4), jittered, native `xyxy_px`, half-open.
    """
    return np.dtype(
        [
            ("row", "<i4"),
            ("crop", "<i4", (4,)),
            ("flip_x", "?"),
            ("flip_y", "?"),
            ("quarter_turns", "u1"),
            ("labels", "<i4", (n_labels,)),
            ("boxes", "<i4", (n_labels, 4)),
        ]
    )


def group_dtype(group_size: int, patches: int) -> np.dtype[np.void]:
    """Return the record of a group of B = `group_size` slots, its MixPatch weights on `patches` positions.

    Fields: `mix`, index into `sampling.MIX_KINDS`; `lam` (patches,), weight of the item itself, row by row;
    `partner` (B,), whom each item is mixed with; `cut` (4,), model-frame `xyxy_px`, half-open.
    """
    return np.dtype(
        [("mix", "u1"), ("lam", "<f4", (patches,)), ("partner", "<i2", (group_size,)), ("cut", "<i4", (4,))]
    )


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """One epoch of a plan: `slots` (n,) of `slot_dtype` and `groups` (n / B,) of `group_dtype`."""

    slots: npt.NDArray[np.void]
    groups: npt.NDArray[np.void]


def slots_of_epoch(table: SliceTable, config: StageConfig) -> int:
    """Return n: the configured slots, or as many as there are drawable slices, rounded up to whole steps."""
    wanted = config.epoch_slots or len(table.drawable())
    step = config.group_size * config.groups_per_step
    return -(-wanted // step) * step


def build_epoch(
    table: SliceTable, config: StageConfig, stage: Stage, image_size: int, seed: int, epoch: int
) -> EpochPlan:
    """Build one epoch of a plan: a pure function of its arguments, independent of the epochs before it.

    Where the stage prompts, it draws labels with jittered boxes, and a crop grows until it holds the boxes drawn, so
    that no prompt points outside the frame.

    Args:
        table: Slices of the training split.
        config: The stage.
        stage: Which of the two stages.
        image_size: S, pixels.
        seed: The plan seed.
        epoch: Counted from 0.

    Raises:
        ValueError: If no slice holds a label, or the configuration cannot be rendered.
    """
    _check(config, stage, image_size)
    rng = CounterRng(seed, stage.name)
    count = slots_of_epoch(table, config)
    first = epoch * count
    rows = balanced_rows(table, rng, first, count)
    views = draw_views(table, rows, config.augmentation, rng, first)
    n_prompts = stage.n_prompts(config)
    slots = np.zeros(count, dtype=slot_dtype(n_prompts))
    slots["row"], slots["crop"] = rows, views.crop
    slots["flip_x"], slots["flip_y"], slots["quarter_turns"] = views.flip_x, views.flip_y, views.quarter_turns
    if n_prompts:
        labels = draw_labels(table, rows, n_prompts, rng, first)
        slots["labels"] = table.label_id[labels]
        slots["boxes"] = draw_boxes(table, rows, labels, stage.box_jitter_px(config), rng, first)
        slots["crop"] = _cover(views.crop, slots["boxes"])
    return EpochPlan(slots, _build_groups(config, image_size, rng, first, count))


def plan_inputs(config: StageConfig, stage: Stage, image_size: int, seed: int) -> dict[str, Any]:
    """Return, as a plain value, all that a plan depends on besides the slices themselves.

    What only the training loop reads (number of epochs beyond P, optimiser, losses) is left out, so variants that
    differ in nothing else share one plan and one teacher cache.
    """
    return {
        "plan_version": PLAN_VERSION,
        "stage": stage.name,
        "image_size": image_size,
        "seed": seed,
        "plan_epochs": config.plan_epochs,
        "group_size": config.group_size,
        "groups_per_step": config.groups_per_step,
        "epoch_slots": config.epoch_slots,
        "prompts_per_slot": stage.n_prompts(config),
        "box_jitter_px": stage.box_jitter_px(config),
        "augmentation": config.augmentation.model_dump(mode="json"),
    }


@dataclass(frozen=True, eq=False)
class Plan:
    """A stage's plan and its reading by step number.

    Attributes:
        config: The stage's configuration.
        stage: Which of the two stages.
        slots: (P, n) of `slot_dtype`.
        groups: (P, n / B) of `group_dtype`.
    """

    config: StageConfig
    stage: Stage
    slots: npt.NDArray[np.void]
    groups: npt.NDArray[np.void]

    @classmethod
    def build(cls, table: SliceTable, config: StageConfig, stage: Stage, image_size: int, seed: int) -> "Plan":
        """Build the P epochs of a plan; arguments and errors as in `build_epoch`."""
        epochs = [build_epoch(table, config, stage, image_size, seed, epoch) for epoch in range(config.plan_epochs)]
        slots = np.stack([epoch.slots for epoch in epochs])
        return cls(config, stage, slots, np.stack([epoch.groups for epoch in epochs]))

    @classmethod
    def from_arrays(cls, config: StageConfig, stage: Stage, arrays: Mapping[str, npt.NDArray[Any]]) -> "Plan":
        """Read a plan back from what `as_arrays` gave; memory-mapped arrays stay so.

        Raises:
            ValueError: If the arrays are not those of a plan of this configuration.
        """
        slots, groups = arrays["slots"], arrays["groups"]
        patches = config.augmentation.mixpatch_grid**2
        expected = (
            slot_dtype(stage.n_prompts(config)),
            group_dtype(config.group_size, patches),
            (config.plan_epochs, slots.shape[-1] // config.group_size),
        )
        found = (slots.dtype, groups.dtype, groups.shape)
        if expected != found or len(slots) != len(groups) or slots.shape[-1] % config.group_size:
            raise ValueError(
                f"plan arrays: expected slots, groups and shape {expected}, found {found} with slots of shape "
                f"{slots.shape}; build the plan again for this configuration"
            )
        return cls(config, stage, slots, groups)

    def as_arrays(self) -> dict[str, npt.NDArray[np.void]]:
        """Return the plan as named arrays, each to be stored as one `.npy` file."""
        return {"slots": self.slots, "groups": self.groups}

    @property
    def epochs(self) -> list[EpochPlan]:
        """The P epochs of the plan."""
        return [EpochPlan(slots, groups) for slots, groups in zip(self.slots, self.groups, strict=True)]

    @property
    def slots_per_epoch(self) -> int:
        """Slots of an epoch, n."""
        return int(self.slots.shape[1])

    @property
    def groups_per_epoch(self) -> int:
        """Groups of an epoch, n / B."""
        return int(self.groups.shape[1])

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch."""
        return self.groups_per_epoch // self.config.groups_per_step

    @property
    def n_plan_slots(self) -> int:
        """Slots of the whole plan, P * n: the length of a teacher cache."""
        return int(self.slots.size)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole training, replayed epochs included."""
        return self.config.epochs * self.steps_per_epoch

    def locate(self, step: int) -> tuple[int, int, int]:
        """Return the epoch of a step, the plan epoch it replays, and its first group within that epoch.

        Raises:
            ValueError: If training has no such step.
        """
        if not 0 <= step < self.total_steps:
            raise ValueError(f"step: expected 0 <= step < {self.total_steps}, found {step}")
        epoch, within = divmod(step, self.steps_per_epoch)
        return epoch, epoch % len(self.slots), within * self.config.groups_per_step

    def group_slots(self, plan_epoch: int, group: int) -> tuple[npt.NDArray[np.void], np.void, int]:
        """Return a group's slots (B,), its mixing record, and the place of its first slot in plan order."""
        start = group * self.config.group_size
        slots = self.slots[plan_epoch, start : start + self.config.group_size]
        return slots, self.groups[plan_epoch, group], plan_epoch * self.slots_per_epoch + start

    def rows_used(self, first_slot: int, stop_slot: int) -> npt.NDArray[np.int32]:
        """Return the distinct table rows, ascending, that slots `first_slot` to `stop_slot` of plan order show."""
        return np.unique(self.slots["row"].reshape(-1)[first_slot:stop_slot])

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


def _check(config: StageConfig, stage: Stage, image_size: int) -> None:
    mixing, grid = config.augmentation.mixing, config.augmentation.mixpatch_grid
    if not stage.mixes and set(mixing) != {"none"}:
        raise ValueError(
            f"mixing: expected ('none',) in {stage.name}, found {mixing}; "
            "a mixed image has no ground truth, so mix in distillation only"
        )
    if "mixpatch" in mixing and image_size % grid:
        raise ValueError(
            f"mixpatch_grid: expected a divisor of the image size {image_size}, found {grid}; "
            "patches must tile the frame"
        )


def _cover(crop: npt.NDArray[np.int32], boxes: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Grow crops, (n, 4), until each holds its slot's boxes, (n, K, 4)."""
    low = np.minimum(crop[:, :2], boxes[:, :, :2].min(axis=1))
    high = np.maximum(crop[:, 2:], boxes[:, :, 2:].max(axis=1))
    return np.concatenate([low, high], axis=1)


def _build_groups(
    config: StageConfig, image_size: int, rng: CounterRng, first_slot: int, count: int
) -> npt.NDArray[np.void]:
    """Return the groups of `count` slots from `first_slot` on, (count / B,) of `group_dtype`."""
    size = config.group_size
    augmentation = config.augmentation
    mixing = draw_mixing(augmentation, size, image_size, rng, first_slot // size, count // size)
    groups = np.zeros(count // size, dtype=group_dtype(size, augmentation.mixpatch_grid**2))
    groups["mix"], groups["lam"] = mixing.kind, mixing.lam
    groups["partner"], groups["cut"] = mixing.partner, mixing.cut
    return groups
