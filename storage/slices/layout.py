"""The layout of a slice store: the recorded plan of its parts, and reading it.

What belongs here: the plan as files. Not here: assigning cases to parts (`storage.slices.store_plan`), a single part
(`storage.slices.planned`), pixels (`storage.slices.reader`).

A part owns whole shards, and no other part writes them. Each slice starts at the boundary of an inner chunk, and the
slices of a case follow one another, so the plan of a part and the order of its cases determine the place of each slice.
Shard and part numbers are never used twice: a published part is immutable, and its replacement has new numbers.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Final

from storage.base.atomic import parse_json
from storage.base.blobs import Blobs, JsonObject, unseal
from storage.base.errors import IntegrityError, StorageError
from storage.slices.config import ARRAY_TYPES, STORE_VERSION, StoreConfig
from storage.slices.planned import PartEntry, PartPlan, PlannedCase, part_fingerprint, plan_key, shards_needed

_REPAIR: Final = "run `medsam verify --repair`, or the ingest job if the part is not published yet"

LAYOUT: Final = "layout.json"


@dataclass
class StoreLayout:
    """The recorded plan of a modality: its parts and the next unused numbers."""

    config: StoreConfig
    parts: list[PartEntry] = field(default_factory=list)
    next_part: int = 0
    next_shard: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ARRAY_TYPES, 0))

    def add(self, modality: str, cases: Sequence[PlannedCase]) -> PartPlan:
        """Append a part with these cases, with new part and shard numbers, and return it."""
        digest = part_fingerprint(modality, self.config, cases)
        needed = shards_needed(self.config, cases)
        part_id = f"part-{self.next_part:05d}-{digest[:8]}"
        part = PartPlan(part_id, modality, digest, len(cases), dict(self.next_shard), needed, tuple(cases))
        self.parts.append(part.entry)
        self.next_part += 1
        self.next_shard = {name: first + needed[name] for name, first in self.next_shard.items()}
        return part

    def to_json(self) -> dict[str, object]:
        """Return the layout as a plain value."""
        return {
            "format_version": STORE_VERSION,
            "config": asdict(self.config),
            "parts": [asdict(part) for part in self.parts],
            "next_part": self.next_part,
            "next_shard": self.next_shard,
        }

    @classmethod
    def from_json(cls, value: JsonObject) -> "StoreLayout":
        """Return the layout from the JSON of `to_json`."""
        parts = [PartEntry(**part) for part in value["parts"]]
        return cls(StoreConfig(**value["config"]), parts, value["next_part"], dict(value["next_shard"]))


def load_layout(root: Blobs, modality: str) -> StoreLayout:
    """Read the recorded plan of a modality, without the cases of its parts.

    Raises:
        StorageError: If no plan is recorded, or another version of this project wrote it.
    """
    found = read_layout(root.below(modality))
    if found is None:
        raise StorageError(
            f"{root.below(modality).url}/{LAYOUT}: expected the plan of store {modality}, found none; plan its parts "
            "first"
        )
    return found[0]


def read_layout(group: Blobs) -> tuple[StoreLayout, str] | None:
    """Return the recorded plan and the version of its blob, or None if there is none; raises as `load_layout` does."""
    found = group.read_version(LAYOUT)
    if found is None:
        return None
    return StoreLayout.from_json(opened(group, LAYOUT, found[0])), found[1]


def load_plan(root: Blobs, modality: str, part_ids: Collection[str] | None = None) -> list[PartPlan]:
    """Return the recorded parts of a modality with their cases.

    Args:
        root: Place of all stores.
        modality: Canonical modality name.
        part_ids: The parts to return; None: all parts.

    Raises:
        StorageError: As in `load_layout`.
        IntegrityError: If a list of cases is missing or altered; a repair restores it from the index rows.
    """
    group, layout = root.below(modality), load_layout(root, modality)
    chosen = [part for part in layout.parts if part_ids is None or part.part_id in part_ids]
    return [with_cases(group, layout.config, part) for part in chosen]


def with_cases(group: Blobs, config: StoreConfig, part: PartEntry) -> PartPlan:
    """Return a part with its cases; raises as `load_plan` does."""
    key = plan_key(part.part_id)
    try:
        value = unseal(group.read(key), f"{group.url}/{key}")
    except FileNotFoundError:
        raise IntegrityError(f"{group.url}/{key}: expected the cases of a part, found no file; {_REPAIR}") from None
    cases = tuple(PlannedCase(*case) for case in value["cases"])
    if part_fingerprint(part.modality, config, cases) != part.fingerprint:
        raise IntegrityError(f"{group.url}/{key}: expected the cases of {part.part_id}, found others; {_REPAIR}")
    return PartPlan(**vars(part), cases=cases)


def opened(group: Blobs, key: str, data: bytes) -> JsonObject:
    """Return the value of a sealed file; check its format version first: older versions were sealed differently."""
    where = f"{group.url}/{key}"
    version = parse_json(data, where, "run `medsam verify --repair`").get("format_version")
    if version != STORE_VERSION:
        raise StorageError(
            f"{where}: expected store format {STORE_VERSION}, found {version}; move {group.url} away and make "
            "the store again"
        )
    return unseal(data, where)
