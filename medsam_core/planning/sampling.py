"""The random choices of a training plan: which slices, views, labels and mixing, each as flat arrays.

What belongs here: draws, vectorised over the slots or microbatches of an epoch. Not here: how they are laid out or
replayed.

Slots and microbatches are numbered across epochs, from 0 on; what is drawn for one depends on its number alone.
Legend: n slots, g microbatches, B slots of a microbatch, K labels of a slot. Source: `docs/paper_protocol.md`.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medsam_core.base.config import MIX_KINDS, AugmentationConfig, BoxJitter
from medsam_core.base.counter_rng import CounterRng, below
from medsam_core.base.data import SliceTable
from medsam_core.imaging.prompts import jitter_boxes


@dataclass(frozen=True)
class Views:
    """Views of n slots: `crop` (n, 4) native `xyxy_px`, half-open; flips (n,); `quarter_turns` (n,), 0 to 3."""

    crop: npt.NDArray[np.int32]
    flip_x: npt.NDArray[np.bool_]
    flip_y: npt.NDArray[np.bool_]
    quarter_turns: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Mixing:
    """Mixing of g microbatches.

    Attributes:
        kind: (g,) uint8, index into `MIX_KINDS`.
        lam: (g, patches) float32, weight of the item itself at each patch position, row by row.
        partner: (g, B) int16, the item with which each is mixed.
        cut: (g, 4) int32, `xyxy_px` of the model frame, half-open, where CutMix shows the partner.
    """

    kind: npt.NDArray[np.uint8]
    lam: npt.NDArray[np.float32]
    partner: npt.NDArray[np.int16]
    cut: npt.NDArray[np.int32]


def balanced_rows(table: SliceTable, rng: CounterRng, first: int, count: int) -> npt.NDArray[np.int32]:
    """Draw the slices of a run of slots, balanced over modalities [P], by shuffled cycles [C].

    A cycle visits every modality that has drawable slices once, in an order drawn for the cycle. Each modality shows
    its drawable slices in a permutation drawn for each pass over them. Cycles and passes continue across epochs.

    Args:
        table: The slices; those whose label map is blank are never drawn.
        rng: Random numbers of the plan.
        first: Number of the first slot.
        count: n.

    Returns:
        (n,) int32 rows of the table.

    Raises:
        ValueError: If no slice can be drawn.
    """
    drawable = table.drawable()
    present = np.unique(table.modality[drawable])
    if not present.size:
        raise ValueError(
            f"slice table: expected at least one slice with a label, found none among {len(table)}; "
            "check the split and that its cases have masks"
        )
    slots = np.arange(first, first + count)
    cycle = slots // len(present)
    first_cycle, n_cycles = _span(cycle)
    orders = rng.permutations("cycle", first_cycle, n_cycles, len(present))
    turn = orders[cycle - first_cycle, slots % len(present)]
    rows = np.empty(count, dtype=np.int32)
    for index, modality in enumerate(present):
        mine = np.flatnonzero(turn == index)
        members = drawable[table.modality[drawable] == modality]
        rows[mine] = members[_pass_positions(rng, table.modalities[modality], cycle[mine], len(members))]
    return rows


def draw_views(
    table: SliceTable, rows: npt.NDArray[np.int32], config: AugmentationConfig, rng: CounterRng, first: int
) -> Views:
    """Draw the crop, flips and rotation of n slots.

    Args:
        table: The slices.
        rows: (n,) the slots' slices.
        config: Probabilities and ranges.
        rng: Random numbers of the plan.
        first: Number of the first slot.
    """
    turned = rng.uniform("orientation", first, len(rows), 3)
    turns = below(turned[:, 2], 4) if config.rotate_right_angles else np.zeros(len(rows))
    return Views(
        crop=_draw_crops(table, rows, config, rng, first),
        flip_x=turned[:, 0] < config.horizontal_flip,
        flip_y=turned[:, 1] < config.vertical_flip,
        quarter_turns=turns.astype(np.uint8),
    )


def draw_labels(
    table: SliceTable, rows: npt.NDArray[np.int32], per_slot: int, rng: CounterRng, first: int
) -> npt.NDArray[np.int64]:
    """Draw K labels of every slot's slice: distinct ones first, and with repetition only once all are drawn.

    Distinct labels are drawn by Floyd's algorithm (Bentley and Floyd, CACM 1987), one column at a time.

    Args:
        table: The slices.
        rows: (n,) the slots' slices, each with at least one label.
        per_slot: K.
        rng: Random numbers of the plan.
        first: Number of the first slot.

    Returns:
        (n, K) int64 positions in the table's label arrays.
    """
    uniform = rng.uniform("label", first, len(rows), per_slot)
    available = np.diff(table.label_start)[rows]
    distinct = np.minimum(available, per_slot)
    chosen = np.full((len(rows), per_slot), -1, dtype=np.int64)
    for k in range(per_slot):
        last = np.where(k < distinct, available - distinct + k, available - 1)
        pick = below(uniform[:, k], last + 1)
        taken = (chosen[:, :k] == pick[:, None]).any(axis=1) & (k < distinct)
        chosen[:, k] = np.where(taken, last, pick)
    positions: npt.NDArray[np.int64] = table.label_start[rows][:, None] + chosen
    return positions


def draw_boxes(
    table: SliceTable,
    rows: npt.NDArray[np.int32],
    labels: npt.NDArray[np.int64],
    jitter: BoxJitter,
    rng: CounterRng,
    first: int,
) -> npt.NDArray[np.int32]:
    """Draw the box prompts of n slots: the label's tight box with each side moved.

    Args:
        table: The slices.
        rows: (n,) the slots' slices.
        labels: (n, K) positions in the table's label arrays.
        jitter: How far sides may move, inclusive; a share is rounded down to whole pixels.
        rng: Random numbers of the plan.
        first: Number of the first slot.

    Returns:
        (n, K, 4) int32, `xyxy_px` of the native slice, half-open, inside the slice.
    """
    uniform = rng.uniform("jitter", first, len(rows), labels.shape[1] * 4)
    outward = below(uniform, jitter.px + 1).reshape(*labels.shape, 4)
    boxes = table.label_box[labels]
    if jitter.permille:
        # A stream of its own: a plan without a share draws what it always drew.
        uniform = rng.uniform("jitter share", first, len(rows), labels.shape[1] * 4).reshape(outward.shape)
        sides = np.tile(boxes[..., 2:].astype(np.int64) - boxes[..., :2], 2)
        most = sides * jitter.permille // 1000
        outward += below(uniform, 2 * most + 1) - most if jitter.inward else below(uniform, most + 1)
    height, width = table.height[rows][:, None], table.width[rows][:, None]
    return jitter_boxes(boxes, outward, height, width)


def draw_mixing(
    config: AugmentationConfig, microbatch_size: int, image_size: int, rng: CounterRng, first: int, count: int
) -> Mixing:
    """Draw the mixing of g microbatches: one of the configured kinds each, with equal probability.

    MixPatch draws one weight from Beta(1, 1), the uniform distribution, for every patch position, shared by the
    microbatch, and a random permutation as partners. CutMix shows the previous item of the microbatch in one box [C].

    Args:
        config: Kinds of mixing and the patch grid.
        microbatch_size: B.
        image_size: S.
        rng: Random numbers of the plan.
        first: Number of the first microbatch.
        count: g.
    """
    choice = below(rng.uniform("mixing", first, count, 1)[:, 0], len(config.mixing))
    kind = np.array([MIX_KINDS.index(name) for name in config.mixing], dtype=np.uint8)[choice]
    is_patch, is_cut = (kind == MIX_KINDS.index(name) for name in ("mixpatch", "cutmix"))
    lam = rng.uniform("mixpatch", first, count, config.mixpatch_grid**2)
    shuffled = rng.permutations("partner", first, count, microbatch_size)
    itself = np.arange(microbatch_size)
    partner = np.where(is_cut[:, None], np.roll(itself, 1), itself)
    cuts = _draw_cuts(rng.uniform("cutmix", first, count, 3), image_size)
    return Mixing(
        kind=kind,
        lam=np.where(is_patch[:, None], lam, 1.0).astype(np.float32),
        partner=np.where(is_patch[:, None], shuffled, partner).astype(np.int16),
        cut=np.where(is_cut[:, None], cuts, 0).astype(np.int32),
    )


def _span(values: npt.NDArray[np.int64]) -> tuple[int, int]:
    """Return the smallest of ascending values and how many integers they span."""
    return int(values[0]), int(values[-1] - values[0]) + 1


def _pass_positions(rng: CounterRng, modality: str, cycle: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    """Return where in a modality's list of `size` slices each of its ascending cycles looks, (cycles,)."""
    if not cycle.size:
        return cycle
    first_pass, n_passes = _span(cycle // size)
    orders = rng.permutations(f"pass|{modality}", first_pass, n_passes, size)
    return orders[cycle // size - first_pass, cycle % size]


def _draw_crops(
    table: SliceTable, rows: npt.NDArray[np.int32], config: AugmentationConfig, rng: CounterRng, first: int
) -> npt.NDArray[np.int32]:
    """Return (n, 4) int32 crops in native pixels; the whole slice where none is drawn.

    Area and aspect ratio are those of the square frame. The area is uniform and the ratio log-uniform over what fits
    into the frame at that area, so no draw has to be rejected.
    """
    whether, area, shape, left, top = rng.uniform("crop", first, len(rows), 5).T
    area = config.crop_scale[0] + area * (config.crop_scale[1] - config.crop_scale[0])
    widest = np.minimum(config.crop_ratio[1], 1 / area)
    narrowest = np.minimum(np.maximum(config.crop_ratio[0], area), widest)
    ratio = narrowest * (widest / narrowest) ** shape
    cropped = whether < config.crop
    x = _crop_side(np.sqrt(area * ratio), left, table.width[rows], cropped)
    y = _crop_side(np.sqrt(area / ratio), top, table.height[rows], cropped)
    return np.stack([x[0], y[0], x[1], y[1]], axis=-1).astype(np.int32)


def _crop_side(
    fraction: npt.NDArray[np.float64],
    place: npt.NDArray[np.float64],
    size: npt.NDArray[np.int32],
    cropped: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return start and stop, (n,) each, of crops along one axis: at least one pixel and never beyond the slice."""
    length = np.where(cropped, np.clip(np.rint(fraction * size), 1, size), size).astype(np.int64)
    start = below(place, size - length + 1)
    return start, start + length


def _draw_cuts(uniform: npt.NDArray[np.float64], image_size: int) -> npt.NDArray[np.int64]:
    """Return (g, 4) CutMix boxes from (g, 3) draws: area 1 - Beta(1, 1), centre uniform, clipped to the frame.

    Follows CutMix (Yun et al., ICCV 2019) as torchvision's `CutMix` computes it.
    """
    half = np.floor(0.5 * np.sqrt(1 - uniform[:, :1]) * image_size).astype(np.int64)
    centre = below(uniform[:, 1:], image_size)
    cuts: npt.NDArray[np.int64] = np.clip(np.concatenate([centre - half, centre + half], axis=1), 0, image_size)
    return cuts
