"""A part of a slice store before it is written: its cases, its shards, its fingerprint.

What belongs here: these values and the keys of a part's blobs. Not here: assigning cases to parts
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
    """The description of a case in the raw manifest.

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
        """Return its attributes in the order above, which is their order in files."""
        return list(vars(self).values())

    def elements(self) -> dict[str, int]:
        """Return array name -> elements that one slice takes, for the arrays that the case uses."""
        pixels = self.height * self.width
        labels = {GT_ARRAYS[self.gt_dtype]: pixels} if self.gt_dtype else {}
        return {"imgs": pixels * self.channels, **labels}


@dataclass(frozen=True)
class PartEntry:
    """The layout's entry of a part. A part is the unit of commit: its cases are written together into its own shards.

    Attributes:
        part_id: Its number and the start of its fingerprint; never used for another part.
        modality: Canonical modality name.
        fingerprint: SHA-256 of the store's version, the encoding and the cases in order; independent of the place.
        n_cases: Number of cases; the blob at `plan_key` lists them.
        first_shard: Array name -> number of the first shard owned.
        n_shards: Array name -> number of shards owned; 0 for an array that the part does not use.
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
        """The entry of the part in the layout."""
        return PartEntry(**{name: getattr(self, name) for name in PartEntry.__dataclass_fields__})

    def sealed_cases(self) -> bytes:
        """Return the content of the blob that lists the cases."""
        return seal({"cases": [case.as_list() for case in self.cases]})


def same_parts(one: Iterable[PartEntry], other: Iterable[PartEntry]) -> bool:
    """Return whether both hold the same parts in the same order; the fingerprints cover the cases."""
    named = [[(part.part_id, part.fingerprint) for part in parts] for parts in (one, other)]
    return named[0] == named[1]


def part_fingerprint(modality: str, config: StoreConfig, cases: Iterable[PlannedCase]) -> str:
    """Return the fingerprint of a part's content."""
    described = {"version": STORE_VERSION, "modality": modality, "encoding": config.encoding()}
    return fingerprint({**described, "cases": [case.as_list() for case in cases]})


def shards_needed(config: StoreConfig, cases: Iterable[PlannedCase]) -> dict[str, int]:
    """Return array name -> shards that these cases need, when they start at the boundary of a shard."""
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
