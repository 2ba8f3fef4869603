"""A part of a slice store before it is written: its cases, the shards it owns, its fingerprint.

What belongs here: these descriptions and the keys that follow from them. Not here: deciding which part holds what
(`storage.slices.store_plan`), the plan of all parts (`storage.slices.layout`).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from storage.base.blobs import seal
from storage.base.fingerprints import fingerprint
from storage.shards.arrays import round_up
from storage.slices.config import GT_ARRAYS, STORE_VERSION, StoreConfig


@dataclass(frozen=True)
class PlannedCase:
    """A case as the manifest describes it.

    Attributes:
        case_id: Its identifier.
        content_hash: BLAKE3 of its arrays.
        is_3d: Whether it is a volume.
        depth: Slices.
        height: Rows of a slice.
        width: Columns of a slice.
        channels: 1 or 3.
        gt_dtype: `uint8`, `uint16`, or empty without labels.
    """

    case_id: str
    content_hash: str
    is_3d: bool
    depth: int
    height: int
    width: int
    channels: int
    gt_dtype: str

    def as_list(self) -> list[str | int]:
        """Return its attributes in the order above, as files list them."""
        return list(vars(self).values())

    def elements(self) -> dict[str, int]:
        """Return the elements that one of its slices takes in each array it uses."""
        pixels = self.height * self.width
        labels = {GT_ARRAYS[self.gt_dtype]: pixels} if self.gt_dtype else {}
        return {"imgs": pixels * self.channels, **labels}


@dataclass(frozen=True)
class PartEntry:
    """The unit of commit, as the layout lists it: cases that are written together into shards of their own.

    Attributes:
        part_id: Number and start of the fingerprint; names this part at this place, never used again.
        modality: Canonical modality name.
        fingerprint: SHA-256 of the store's version, the encoding and the cases in order; not of the place.
        n_cases: How many cases; a blob of the part's own, at `plan_key`, lists them.
        first_shard: Array name -> number of the first shard owned.
        n_shards: Array name -> number of shards owned; 0 for an array the part does not use.
    """

    part_id: str
    modality: str
    fingerprint: str
    n_cases: int
    first_shard: dict[str, int]
    n_shards: dict[str, int]


@dataclass(frozen=True)
class PartPlan(PartEntry):
    """A part with its cases, in the order they are stored."""

    cases: tuple[PlannedCase, ...]

    @property
    def entry(self) -> PartEntry:
        """What the layout lists of it."""
        return PartEntry(**{name: getattr(self, name) for name in PartEntry.__dataclass_fields__})

    def sealed_cases(self) -> bytes:
        """Return the content of the blob that lists the cases."""
        return seal({"cases": [case.as_list() for case in self.cases]})


def same_parts(one: Iterable[PartEntry], other: Iterable[PartEntry]) -> bool:
    """Return whether both are the same parts in the same order; fingerprints cover the cases."""
    named = [[(part.part_id, part.fingerprint) for part in parts] for parts in (one, other)]
    return named[0] == named[1]


def part_fingerprint(modality: str, config: StoreConfig, cases: Iterable[PlannedCase]) -> str:
    """Return the fingerprint of a part's content."""
    described = {"version": STORE_VERSION, "modality": modality, "encoding": config.encoding()}
    return fingerprint({**described, "cases": [case.as_list() for case in cases]})


def shards_needed(config: StoreConfig, cases: Iterable[PlannedCase]) -> dict[str, int]:
    """Return how many shards of each array these cases take when they start on a shard's boundary."""
    layouts = config.array_layouts()
    total = dict.fromkeys(layouts, 0)
    for case in cases:
        for name, size in case.elements().items():
            total[name] += case.depth * round_up(size, layouts[name].chunk)
    return {name: math.ceil(total[name] / layouts[name].shard) for name in layouts}


def rows_key(part_id: str) -> str:
    """Return the key, in a modality's group, of the index rows of a part."""
    return f"parts/{part_id}.parquet"


def plan_key(part_id: str) -> str:
    """Return the key, in a modality's group, of the list of a part's cases."""
    return f"plan/{part_id}.json"
