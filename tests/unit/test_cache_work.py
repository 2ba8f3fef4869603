"""What a part of a teacher cache is made from: its slots, what they show, the mixing of every microbatch it touches."""

import dataclasses
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest

from medsam_core.learning.stages import DISTILLATION
from medsam_core.planning.plan import Plan
from pipelines.teacher.caches import CacheWork
from storage.answers.cache_plan import ArraySpec, CacheSpec
from storage.releases.reader import ReleaseReader
from tests.unit.training_helpers import N_SLICES, build_plan, stage_config

SLOTS_PER_PART = 3
"""Microbatches of two slots lie across parts."""


class Columns:
    """What a release says of its slices."""

    def __init__(self) -> None:
        self.hashes = np.array([f"content {row}" for row in range(N_SLICES)], object)
        self.depth: npt.NDArray[np.int64] = np.arange(N_SLICES)

    def names(self, _column: str) -> npt.NDArray[np.object_]:
        return self.hashes

    def codes(self, _column: str) -> npt.NDArray[np.int64]:
        return np.arange(N_SLICES)

    def numbers(self, _column: str) -> npt.NDArray[np.int64]:
        return self.depth


class Slices:
    """Stands for a reader, of which only the columns are asked."""

    def __init__(self) -> None:
        self.columns = Columns()


def digests(plan: Plan, slices: Slices) -> list[str]:
    work = CacheWork.__new__(CacheWork)
    work.plan = plan
    work.spec = CacheSpec(
        arrays={"embeddings": ArraySpec((2, 2, 2), "float16")},
        n_slots=plan.n_plan_slots,
        slots_per_chunk=1,
        slots_per_shard=SLOTS_PER_PART,
        shards_per_part=1,
        made_from={},
    )
    return [part.fingerprint for part in work.parts(cast("ReleaseReader", slices))]


def differing(plan: Plan, slices: Slices | None = None) -> set[int]:
    """Return the numbers of the parts that are others than those of the unchanged plan."""
    before, after = digests(PLAN, Slices()), digests(plan, slices or Slices())
    return {number for number, (a, b) in enumerate(zip(before, after, strict=True)) if a != b}


PLAN = build_plan(DISTILLATION, stage_config(DISTILLATION))
N_PARTS = -(-PLAN.n_plan_slots // SLOTS_PER_PART)


def touching(microbatch: int) -> set[int]:
    """Return the numbers of the parts that hold a slot of a microbatch."""
    size = PLAN.config.microbatch_size
    return {slot // SLOTS_PER_PART for slot in range(microbatch * size, (microbatch + 1) * size)}


def changed(field: str, table: npt.NDArray[np.void], number: int) -> npt.NDArray[np.void]:
    copy = table.copy()
    value = copy.reshape(-1)[field]
    value[number] = value[number] ^ 1 if value.dtype == np.bool_ else value[number] + 1
    return copy


def test_nothing_changed_is_the_same() -> None:
    assert differing(PLAN) == set()
    assert len(set(digests(PLAN, Slices()))) == N_PARTS


@pytest.mark.parametrize("field", PLAN.microbatches.dtype.names or ())
@pytest.mark.parametrize("microbatch", [0, 1, 7])
def test_how_a_microbatch_is_mixed_is_part_of_every_part_that_it_touches(field: str, microbatch: int) -> None:
    plan = dataclasses.replace(PLAN, microbatches=changed(field, PLAN.microbatches, microbatch))
    assert differing(plan) == touching(microbatch)


@pytest.mark.parametrize("field", ["crop", "flip_x", "flip_y", "quarter_turns"])
@pytest.mark.parametrize("slot", [0, 2, 9])
def test_a_slot_is_part_of_every_part_that_its_microbatch_touches(field: str, slot: int) -> None:
    plan = dataclasses.replace(PLAN, slots=changed(field, PLAN.slots, slot))
    assert differing(plan) == touching(slot // PLAN.config.microbatch_size)


@pytest.mark.parametrize("row", [0, N_SLICES - 1])
def test_content_and_depth_of_a_slice_are_part_of_every_part_that_shows_it(row: int) -> None:
    size = PLAN.config.microbatch_size
    showing = np.flatnonzero((PLAN.slots["row"].reshape(-1, size) == row).any(axis=1))
    expected = set().union(*(touching(int(number)) for number in showing))
    other, deeper = Slices(), Slices()
    other.columns.hashes[row] = "other content"
    deeper.columns.depth[row] += 100
    assert differing(PLAN, other) == differing(PLAN, deeper) == expected
