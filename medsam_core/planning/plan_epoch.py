"""One epoch of a training plan: its records, and drawing them.

What belongs here: the layout of slots and microbatches, and which draw fills which field. Not here: the draws
themselves (`sampling`), or the plan of all epochs and its reading (`plan`).

Legend: n slots of an epoch, B slots of a microbatch, K labels of a slot.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medsam_core.base.config import StageConfig
from medsam_core.base.counter_rng import CounterRng
from medsam_core.base.data import SliceTable
from medsam_core.learning.stages import Stage
from medsam_core.planning.sampling import balanced_rows, draw_boxes, draw_labels, draw_mixing, draw_views


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


def microbatch_dtype(microbatch_size: int, patches: int) -> np.dtype[np.void]:
    """Return the record of a microbatch of B = `microbatch_size` slots, its MixPatch weights on `patches` positions.

    Fields: `mix`, index into `medsam_core.base.config.MIX_KINDS`; `lam` (patches,), weight of the item itself, row by
    row; `partner` (B,), the item with which each is mixed; `cut` (4,), model-frame `xyxy_px`, half-open.
    """
    return np.dtype(
        [("mix", "u1"), ("lam", "<f4", (patches,)), ("partner", "<i2", (microbatch_size,)), ("cut", "<i4", (4,))]
    )


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """One epoch of a plan: `slots` (n,) of `slot_dtype` and `microbatches` (n / B,) of `microbatch_dtype`."""

    slots: npt.NDArray[np.void]
    microbatches: npt.NDArray[np.void]


def slots_of_epoch(table: SliceTable, config: StageConfig) -> int:
    """Return n: the configured slots, or as many as there are drawable slices, rounded up to whole steps."""
    wanted = config.epoch_slots or len(table.drawable())
    step = config.microbatch_size * config.microbatches_per_step
    return -(-wanted // step) * step


def build_epoch(
    table: SliceTable, config: StageConfig, stage: Stage, image_size: int, seed: int, epoch: int
) -> EpochPlan:
    """Build one epoch of a plan: a pure function of its arguments, independent of the epochs before it.

    For a stage with prompts, labels with jittered boxes are drawn, and each crop is enlarged until it contains them, so
    that no prompt lies outside the frame.

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
        slots["boxes"] = draw_boxes(table, rows, labels, stage.box_jitter(config), rng, first)
        slots["crop"] = _cover(views.crop, slots["boxes"])
    return EpochPlan(slots, _build_microbatches(config, image_size, rng, first, count))


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


def _build_microbatches(
    config: StageConfig, image_size: int, rng: CounterRng, first_slot: int, count: int
) -> npt.NDArray[np.void]:
    """Return the microbatches of `count` slots from `first_slot` on, (count / B,) of `microbatch_dtype`."""
    size = config.microbatch_size
    augmentation = config.augmentation
    mixing = draw_mixing(augmentation, size, image_size, rng, first_slot // size, count // size)
    microbatches = np.zeros(count // size, dtype=microbatch_dtype(size, augmentation.mixpatch_grid**2))
    microbatches["mix"], microbatches["lam"] = mixing.kind, mixing.lam
    microbatches["partner"], microbatches["cut"] = mixing.partner, mixing.cut
    return microbatches
