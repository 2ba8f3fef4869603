"""The plan: a pure function of its inputs, balanced, replayable and readable by step number."""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsam_core.base.config import MIX_KINDS, AugmentationConfig, OptimiserConfig, StageConfig
from medsam_core.base.counter_rng import CounterRng
from medsam_core.base.data import SliceTable
from medsam_core.learning.stages import DISTILLATION, FINETUNING, STAGES, Stage
from medsam_core.planning.plan import PLAN_VERSION, Plan, plan_inputs
from medsam_core.planning.plan_epoch import build_epoch, slots_of_epoch
from medsam_core.planning.sampling import draw_labels, draw_mixing
from tests.unit.slices import table_of_counts

S = 64
COUNTS = [[1, 0, 2, 5], [0, 0], [3], [1] * 17, [2, 1, 4, 0, 9, 1, 1]]
TABLE = table_of_counts(COUNTS)
PRESENT = [0, 2, 3, 4]
PINNED = (1, "63f39a1f91e459e1", "5487fae2112de520")
"""Plan version, and digests of a fine-tuning and a distillation plan under it."""
MIXED = AugmentationConfig(crop=0.5, rotate_right_angles=True, mixing=MIX_KINDS)

counts_of_labels = st.lists(st.lists(st.integers(0, 4), max_size=6), min_size=1, max_size=5).filter(
    lambda counts: any(any(slices) for slices in counts)
)


def stage_config(**changes: Any) -> StageConfig:
    """Return a small stage: microbatches of 3, two to a step."""
    return StageConfig(**{"microbatch_size": 3, "microbatches_per_step": 2, "epochs": 4, "epoch_slots": 50, **changes})


def build(table: SliceTable = TABLE, stage: Stage = FINETUNING, seed: int = 0, **changes: Any) -> Plan:
    """Build a small plan; distillation crops, turns and mixes."""
    default = {"augmentation": MIXED} if stage is DISTILLATION else {}
    return Plan.build(table, stage_config(**{**default, **changes}), stage, S, seed)


def digest(plan: Plan) -> str:
    """Return the SHA-256 of a plan's bytes."""
    return hashlib.sha256(plan.slots.tobytes() + plan.microbatches.tobytes()).hexdigest()


def rows_in_order(plan: Plan) -> npt.NDArray[np.int32]:
    """Return the rows of all plan epochs one after the other."""
    rows: npt.NDArray[np.int32] = plan.slots["row"].reshape(-1)
    return rows


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_same_inputs_give_the_same_bytes(stage: Stage) -> None:
    assert digest(build(stage=stage)) == digest(build(stage=stage))
    assert digest(build(stage=stage)) != digest(build(stage=stage, seed=1))


def test_the_bytes_of_a_plan_change_only_with_its_version() -> None:
    # Another digest under the same version would let caches of other plans pass for this one's.
    assert (PLAN_VERSION, digest(build())[:16], digest(build(stage=DISTILLATION))[:16]) == PINNED


def test_epochs_differ_and_are_built_independently() -> None:
    plan = build(stage=DISTILLATION)
    assert len({epoch.slots.tobytes() for epoch in plan.epochs}) == 4
    alone = build_epoch(TABLE, plan.config, DISTILLATION, S, 0, 2)
    assert alone.slots.tobytes() == plan.epochs[2].slots.tobytes()
    assert alone.microbatches.tobytes() == plan.epochs[2].microbatches.tobytes()


@pytest.mark.parametrize(
    ("changes", "same_plan"),
    [
        ({"epochs": 3}, True),
        ({"mask_distillation": False}, True),
        ({"optimiser": OptimiserConfig(learning_rate=1.0)}, True),
        ({"cached_epochs": 3}, False),
        ({"microbatch_size": 4}, False),
        ({"microbatches_per_step": 3}, False),
        ({"epoch_slots": 99}, False),
        ({"prompts_per_slot": 2}, False),
        ({"box_jitter_px": 0}, False),
        ({"box_jitter_share": 0.3}, False),
        ({"box_jitter_inward": True}, True),
        ({"augmentation": AugmentationConfig(horizontal_flip=0)}, False),
    ],
)
def test_plan_inputs_cover_exactly_what_changes_a_plan(changes: dict[str, Any], same_plan: bool) -> None:
    before = stage_config(cached_epochs=2, epoch_slots=55)
    after = before.model_copy(update=changes)
    inputs = [plan_inputs(config, FINETUNING, S, 0) for config in (before, after)]
    digests = [digest(Plan.build(TABLE, config, FINETUNING, S, 0)) for config in (before, after)]
    assert (inputs[0] == inputs[1]) == same_plan
    assert (digests[0] == digests[1]) == same_plan


@settings(max_examples=40, deadline=None)
@given(counts_of_labels, st.integers(0, 2**32), st.integers(1, 60))
def test_every_cycle_visits_every_modality_once_across_epochs(
    counts: list[list[int]], seed: int, epoch_slots: int
) -> None:
    table = table_of_counts(counts)
    plan = build(table, seed=seed, epoch_slots=epoch_slots)
    present = sorted({int(modality) for modality in table.modality[table.drawable()]})
    drawn = table.modality[rows_in_order(plan)]
    whole = drawn[: len(drawn) // len(present) * len(present)].reshape(-1, len(present))
    assert (np.sort(whole, axis=1) == present).all()


@settings(max_examples=40, deadline=None)
@given(counts_of_labels, st.integers(0, 2**32), st.integers(1, 60))
def test_every_pass_over_a_modality_shows_each_slice_once(counts: list[list[int]], seed: int, epoch_slots: int) -> None:
    table = table_of_counts(counts)
    rows = rows_in_order(build(table, seed=seed, epoch_slots=epoch_slots))
    for modality in range(len(counts)):
        members = [row for row in table.drawable() if table.modality[row] == modality]
        mine = rows[table.modality[rows] == modality]
        for start in range(0, len(mine) - len(members) + 1, max(len(members), 1)):
            assert sorted(mine[start : start + len(members)]) == members


def test_order_of_modalities_and_of_slices_is_redrawn() -> None:
    rows = rows_in_order(build(epoch_slots=4 * 17 * 6))
    cycles = TABLE.modality[rows].reshape(-1, 4)
    assert len(np.unique(cycles, axis=0)) == 24
    passes = rows[TABLE.modality[rows] == 3].reshape(-1, 17)
    assert len(np.unique(passes, axis=0)) == len(passes)


def test_slices_without_labels_are_never_drawn() -> None:
    rows = rows_in_order(build())
    assert set(rows) == set(TABLE.drawable())


def test_a_table_without_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one slice with a label, found none among 3"):
        build(table_of_counts([[0, 0], [0]]))


@pytest.mark.parametrize(("wanted", "slots"), [(1, 6), (6, 6), (7, 12), (None, 30)])
def test_epochs_are_rounded_up_to_whole_steps(wanted: int | None, slots: int) -> None:
    config = stage_config(epoch_slots=wanted)
    assert len(TABLE.drawable()) == 27
    assert slots_of_epoch(TABLE, config) == slots
    plan = Plan.build(TABLE, config, FINETUNING, S, 0)
    assert plan.slots.shape == (4, slots)
    assert plan.microbatches.shape == (4, slots // 3)
    assert (plan.slots_per_epoch, plan.steps_per_epoch) == (slots, slots // 6)
    assert (plan.n_plan_slots, plan.total_steps) == (4 * slots, 4 * slots // 6)


@pytest.mark.parametrize("cached", [1, 2, 3, None])
def test_epoch_replays_epoch_modulo_the_cached(cached: int | None) -> None:
    plan = build(cached_epochs=cached)
    epochs = cached or 4
    assert len(plan.epochs) == epochs
    for step in range(plan.total_steps):
        epoch, plan_epoch, first_microbatch = plan.locate(step)
        assert epoch * plan.steps_per_epoch + first_microbatch // 2 == step
        assert plan_epoch == epoch % epochs
    uncached = build()
    assert plan.slots.tobytes() == uncached.slots[:epochs].tobytes()


def test_reading_from_a_step_on_is_the_rest_of_reading_from_the_start() -> None:
    def read(first_step: int) -> list[tuple[bytes, bytes, int]]:
        plan = build(stage=DISTILLATION, cached_epochs=3)
        seen = []
        for step in range(first_step, plan.total_steps):
            _, plan_epoch, microbatch = plan.locate(step)
            for offset in range(plan.config.microbatches_per_step):
                slots, record, first_slot = plan.microbatch_slots(plan_epoch, microbatch + offset)
                seen.append((slots.tobytes(), record.tobytes(), first_slot))
        return seen

    whole = read(0)
    assert read(13) == whole[26:]
    plan = build(stage=DISTILLATION, cached_epochs=3)
    in_order = whole[: plan.microbatches.size]
    assert [first for _, _, first in in_order] == list(range(0, plan.n_plan_slots, 3))
    assert b"".join(slots for slots, _, _ in in_order) == plan.slots.tobytes()
    assert b"".join(record for _, record, _ in in_order) == plan.microbatches.tobytes()


@pytest.mark.parametrize("step", [-1, 36])
def test_a_step_outside_training_is_refused(step: int) -> None:
    plan = build()
    assert plan.total_steps == 36
    with pytest.raises(ValueError, match="expected 0 <= step < 36"):
        plan.locate(step)


@settings(max_examples=40, deadline=None)
@given(counts_of_labels, st.integers(0, 2**32), st.integers(1, 6), st.integers(0, 5), st.sampled_from([0.0, 1.0]))
def test_prompts_are_labels_of_the_slice_in_jittered_boxes_inside_crop(
    counts: list[list[int]], seed: int, per_slot: int, jitter: int, crop: float
) -> None:
    table = table_of_counts(counts)
    augmentation = AugmentationConfig(crop=crop, crop_scale=(0.01, 1.0))
    plan = build(table, seed=seed, prompts_per_slot=per_slot, box_jitter_px=jitter, augmentation=augmentation)
    for slot in plan.slots.reshape(-1):
        row = slot["row"]
        at = slice(table.label_start[row], table.label_start[row + 1])
        boxes = dict(zip(table.label_id[at], table.label_box[at], strict=True))
        assert len(set(slot["labels"])) == min(per_slot, len(boxes))
        for label, box in zip(slot["labels"], slot["boxes"], strict=True):
            moved = (boxes[label] - box) * [1, 1, -1, -1]
            assert moved.min() >= 0
            assert moved.max() <= jitter
        corners = np.stack([*slot["boxes"], [0, 0, table.width[row], table.height[row]]])
        assert (corners[:-1, :2] >= slot["crop"][:2]).all()
        assert (corners[:-1, 2:] <= slot["crop"][2:]).all()
        assert (slot["crop"][:2] >= 0).all()
        assert (slot["crop"][2:] <= corners[-1, 2:]).all()


def test_jitter_reaches_both_of_its_ends_on_every_side() -> None:
    table = table_of_counts([[1]])
    table.height[:], table.width[:], table.label_box[:] = 100, 100, [40, 40, 60, 60]
    moved = (build(table, epoch_slots=600).slots["boxes"] - [40, 40, 60, 60]).reshape(-1, 4) * [-1, -1, 1, 1]
    for side in moved.T:
        np.testing.assert_array_equal(np.unique(side), range(6))


@pytest.mark.parametrize("inward", [False, True])
def test_a_share_of_the_boxs_side_is_reached_on_every_side_and_never_exceeded(inward: bool) -> None:
    table = table_of_counts([[1]])
    table.height[:], table.width[:], table.label_box[:] = 100, 100, [40, 30, 55, 70]
    changes = {"box_jitter_px": 0, "box_jitter_share": 0.1, "box_jitter_inward": inward}
    moved = (build(table, epoch_slots=600, **changes).slots["boxes"] - [40, 30, 55, 70]).reshape(-1, 4)
    for side, most in zip((moved * [-1, -1, 1, 1]).T, (1, 4, 1, 4), strict=True):
        np.testing.assert_array_equal(np.unique(side), range(-most if inward else 0, most + 1))


def test_a_share_comes_on_top_of_pixels_whose_draws_stay_what_they_were() -> None:
    plain, more = (build(box_jitter_share=share).slots["boxes"] for share in (0.0, 0.4))
    outward = (more - plain) * [-1, -1, 1, 1]
    assert outward.min() == 0
    assert outward.max() > 5


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32))
def test_sides_that_move_inward_never_meet(width: int, height: int, seed: int) -> None:
    table = table_of_counts([[1]])
    table.height[:], table.width[:], table.label_box[:] = 40, 40, [5, 5, 5 + width, 5 + height]
    plan = build(table, seed=seed, epoch_slots=60, box_jitter_px=0, box_jitter_share=0.4, box_jitter_inward=True)
    boxes = plan.slots["boxes"]
    assert (boxes[..., 2:] > boxes[..., :2]).all()
    assert boxes.min() >= 0
    assert boxes.max() <= 40


def test_distinct_labels_are_drawn_uniformly() -> None:
    table = table_of_counts([[5]])
    rows = np.zeros(20_000, dtype=np.int32)
    drawn = draw_labels(table, rows, 2, CounterRng(0, "test"), 0)
    pairs, counts = np.unique(np.sort(drawn, axis=1), axis=0, return_counts=True)
    assert len(pairs) == 10
    # Binomial(20000, 1/10) has a standard deviation of 42: five of them either side.
    assert np.abs(counts - 2000).max() < 212


def test_repeated_labels_come_after_all_distinct_ones_and_reach_each() -> None:
    table = table_of_counts([[2]])
    drawn = draw_labels(table, np.zeros(500, dtype=np.int32), 5, CounterRng(0, "test"), 0)
    np.testing.assert_array_equal(np.sort(drawn[:, :2], axis=1), np.tile([0, 1], (500, 1)))
    assert set(drawn[:, 2:].reshape(-1)) == {0, 1}


def test_distillation_has_no_prompts_and_finetuning_shows_whole_upright_slices() -> None:
    assert build(stage=DISTILLATION).slots["labels"].shape[-1] == 0
    slots = build().slots.reshape(-1)
    np.testing.assert_array_equal(slots["crop"][:, 2], TABLE.width[slots["row"]])
    np.testing.assert_array_equal(slots["crop"][:, 3], TABLE.height[slots["row"]])
    assert not slots["crop"][:, :2].any()
    assert not slots["quarter_turns"].any()
    assert 0 < slots["flip_x"].mean() < 1
    assert 0 < slots["flip_y"].mean() < 1


def test_crops_keep_the_configured_area_and_ratio() -> None:
    table = table_of_counts([[1]])
    table.height[:], table.width[:], table.label_box[:] = 2000, 1000, [0, 0, 1, 1]
    plan = build(table, stage=DISTILLATION, epoch_slots=6000, epochs=1)
    crop = plan.slots["crop"].reshape(-1, 4)
    width, height = (crop[:, 2] - crop[:, 0]) / 1000, (crop[:, 3] - crop[:, 1]) / 2000
    whole = (width == 1) & (height == 1)
    assert 0.45 < whole.mean() < 0.55
    area, ratio = (width * height)[~whole], (width / height)[~whole]
    assert 0.499 < area.min() < 0.51
    assert 0.99 < area.max() <= 1
    assert 0.17 < (area > 0.9).mean() < 0.23
    assert 0.748 < ratio.min() < 0.76
    assert 1.32 < ratio.max() < 1.336
    assert crop[~whole, 0].min() == 0
    assert crop[~whole, 2].max() == 1000
    assert (crop[:, :2] >= 0).all()


def test_crops_are_never_smaller_than_a_pixel() -> None:
    table = table_of_counts([[1, 1]])
    table.height[:], table.width[:], table.label_box[:] = [1, 3], [2, 1], [0, 0, 1, 1]
    augmentation = AugmentationConfig(crop=1.0, crop_scale=(1e-6, 1e-5))
    crop = build(table, stage=DISTILLATION, augmentation=augmentation).slots["crop"].reshape(-1, 4)
    np.testing.assert_array_equal(crop[:, 2:] - crop[:, :2], np.ones((len(crop), 2)))


def test_every_view_and_kind_of_mixing_is_drawn() -> None:
    plan = build(stage=DISTILLATION, epoch_slots=900)
    slots = plan.slots.reshape(-1)
    views = np.stack([slots["flip_x"], slots["flip_y"], slots["quarter_turns"]], axis=1)
    assert len(np.unique(views, axis=0)) == 16
    share = np.bincount(plan.microbatches["mix"].reshape(-1)) / plan.microbatches.size
    np.testing.assert_allclose(share, 1 / 3, atol=0.07)


def test_microbatches_hold_what_their_kind_of_mixing_needs() -> None:
    for microbatch in build(stage=DISTILLATION, epoch_slots=600).microbatches.reshape(-1):
        kind = MIX_KINDS[microbatch["mix"]]
        expected = {"none": [0, 1, 2], "cutmix": [2, 0, 1]}.get(kind, list(microbatch["partner"]))
        np.testing.assert_array_equal(microbatch["partner"], expected)
        assert sorted(microbatch["partner"]) == [0, 1, 2]
        assert (microbatch["lam"] == 1).all() == (kind != "mixpatch")
        assert microbatch["lam"].shape == (16,)
        assert kind == "cutmix" or not microbatch["cut"].any()
        assert (microbatch["cut"] >= 0).all()
        assert (microbatch["cut"] <= S).all()
        assert (microbatch["cut"][2:] >= microbatch["cut"][:2]).all()


def test_cutmix_shows_in_each_item_the_one_before_it_and_in_the_first_the_last() -> None:
    """Rolled by one to the right: item k has partner k - 1. Rolled the other way item 0 would show item 1."""
    config = AugmentationConfig(mixing=("cutmix",))
    mixing = draw_mixing(config, microbatch_size=5, image_size=S, rng=CounterRng(0, "distillation"), first=0, count=7)
    assert mixing.partner.tolist() == [[4, 0, 1, 2, 3]] * 7


def test_mixing_draws_follow_beta_1_1() -> None:
    microbatches = build(stage=DISTILLATION, epoch_slots=9000, epochs=1).microbatches.reshape(-1)
    lam = microbatches["lam"][microbatches["mix"] == MIX_KINDS.index("mixpatch")]
    assert abs(lam.mean() - 1 / 2) < 0.02
    assert abs(lam.var() - 1 / 12) < 0.01
    assert len(np.unique(lam[0])) == 16
    cut = microbatches["cut"][microbatches["mix"] == MIX_KINDS.index("cutmix")]
    assert cut[:, 0].min() == 0
    assert cut[:, 2].max() == S


def test_switching_one_augmentation_off_leaves_every_other_draw() -> None:
    with_all = build(stage=DISTILLATION)
    without = build(stage=DISTILLATION, augmentation=MIXED.model_copy(update={"mixing": ("none",)}))
    assert with_all.slots.tobytes() == without.slots.tobytes()
    assert not without.microbatches["mix"].any()
    uncropped = build(stage=DISTILLATION, augmentation=MIXED.model_copy(update={"crop": 0.0}))
    for field in ("row", "flip_x", "flip_y", "quarter_turns"):
        np.testing.assert_array_equal(with_all.slots[field], uncropped.slots[field])
    assert with_all.microbatches.tobytes() == uncropped.microbatches.tobytes()


def test_finetuning_does_not_mix_and_patches_tile_the_frame() -> None:
    with pytest.raises(ValueError, match="a mixed image has no ground truth"):
        build(augmentation=MIXED)
    with pytest.raises(ValueError, match="expected a divisor of the image size 64, found 5"):
        build(stage=DISTILLATION, augmentation=MIXED.model_copy(update={"mixpatch_grid": 5}))


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_a_plan_survives_npy_files(stage: Stage, tmp_path: Path) -> None:
    plan = build(stage=stage, prompts_per_slot=2)
    for name, array in plan.as_arrays().items():
        np.save(tmp_path / f"{name}.npy", array, allow_pickle=False)
    arrays = {name: np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in plan.as_arrays()}
    back = Plan.from_arrays(plan.config, stage, arrays)
    assert digest(back) == digest(plan)
    assert back.microbatch_slots(1, 2)[0].tobytes() == plan.microbatch_slots(1, 2)[0].tobytes()
    assert isinstance(back.slots, np.memmap)


@pytest.mark.parametrize(
    "changes", [{"microbatch_size": 4}, {"prompts_per_slot": 2}, {"cached_epochs": 2}, {"augmentation": MIXED}]
)
def test_arrays_of_another_configuration_are_refused(changes: dict[str, Any]) -> None:
    plan = build(augmentation=AugmentationConfig(mixpatch_grid=2))
    with pytest.raises(ValueError, match="build the plan again"):
        Plan.from_arrays(plan.config.model_copy(update=changes), FINETUNING, plan.as_arrays())


def test_coverage_counts_slots_and_distinct_slices_by_modality() -> None:
    plan = build(epoch_slots=30, cached_epochs=1)
    coverage = plan.coverage(TABLE)
    assert list(coverage["modality"]) == [f"M{index}" for index in PRESENT]
    assert list(coverage["drawable"]) == [3, 1, 17, 6]
    assert coverage["slots"].sum() == 30
    assert list(coverage["distinct"]) == [3, 1, int(coverage["slots"][2]), 6]
    everything = build(epoch_slots=30).coverage(TABLE)
    assert list(everything["distinct"]) == [3, 1, 17, 6]


def test_a_distillation_plan_is_plain_npy_data() -> None:
    buffer = io.BytesIO()
    np.save(buffer, build(stage=DISTILLATION).slots, allow_pickle=False)
    assert len(buffer.getvalue()) < 4 * 54 * 24 + 512
