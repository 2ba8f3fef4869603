"""The layout of a slice store: its settings, the plan of a part, and where the files are.

What belongs here: descriptions and places. Not here: deciding which part holds what (`storage.slices.store_plan`), nor
pixels (`storage.slices.reader`).

A part owns whole shards and nobody else writes them. Each slice starts on an inner chunk's boundary and the slices of a
case follow one another, so a part's plan and the order of its cases say where each slice lies. Shard and part numbers
are never used twice: a published part is immutable, and what replaces it lies elsewhere.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Final

from storage.base.atomic import parse_json
from storage.base.blobs import Blobs, JsonObject, seal, unseal
from storage.base.errors import IntegrityError, StorageError
from storage.base.fingerprints import fingerprint
from storage.shards.arrays import ArrayLayout, round_up
from storage.shards.codec import COMPRESSIONS, MAX_LZ4_LEVEL, Compression

STORE_VERSION: Final = 3
"""Raised by hand whenever the same cases would be stored differently."""

ARRAY_TYPES: Final[dict[str, str]] = {"imgs": "uint8", "gts_u8": "uint8", "gts_u16": "uint16"}
"""Arrays of a modality's group and their element types."""

GT_ARRAYS: Final[dict[str, str]] = {"uint8": "gts_u8", "uint16": "gts_u16", "": ""}
"""Type of a case's labels -> the array that holds them; a case without labels has neither."""

_REPAIR: Final = "run `medsam verify --repair`, or the ingest job if the part is not published yet"

LAYOUT: Final = "layout.json"


@dataclass(frozen=True)
class StoreConfig:
    """How slice stores are cut."""

    chunk_bytes: int = 262_144
    """Uncompressed bytes of an inner chunk; the default is one 512 x 512 slice."""
    chunks_per_shard: int = 256
    """Inner chunks of a shard, which is one file."""
    part_shards: int = 8
    """Shards of `imgs` that a part may own; a single case that needs more gets a part of its own."""
    codec: Compression = "zstd"
    """How inner chunks are compressed; `lz4` reads about twice as fast and takes about 1.3 times the room."""
    level: int = 1
    """How hard chunks are compressed: of zstd, or with lz4 its high compression mode above 1. Level 1 of zstd gives CT
    level 3's bytes at twice its speed; images that compress badly need 4 to be as small as their npz files."""

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If one is out of range.
        """
        if self.chunk_bytes < 2 or self.chunk_bytes % 2:
            raise ValueError(f"chunk_bytes: expected an even number above 0, found {self.chunk_bytes}")
        for name in ("chunks_per_shard", "part_shards", "level"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")
        if self.codec == "lz4" and self.level > MAX_LZ4_LEVEL:
            raise ValueError(f"level: expected at most {MAX_LZ4_LEVEL} with lz4, found {self.level}")
        if self.codec not in COMPRESSIONS:
            raise ValueError(f"codec: expected one of {', '.join(COMPRESSIONS)}, found {self.codec!r}")

    def array_layouts(self) -> dict[str, ArrayLayout]:
        """Return how each array of a modality's group lies on disk."""
        return {name: self._array_layout(name, dtype) for name, dtype in ARRAY_TYPES.items()}

    def _array_layout(self, name: str, dtype: str) -> ArrayLayout:
        chunk = self.chunk_bytes // (2 if dtype == "uint16" else 1)
        return ArrayLayout(name, dtype, (), chunk, chunk * self.chunks_per_shard, self.level, self.codec)

    def encoding(self) -> dict[str, int | str]:
        """Return the settings that a part's bytes depend on."""
        cut: dict[str, int | str] = {"chunk_bytes": self.chunk_bytes, "chunks_per_shard": self.chunks_per_shard}
        return {**cut, "codec": self.codec, "level": self.level}


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


@dataclass
class StoreLayout:
    """A modality's plan as recorded: its parts and the numbers not used yet."""

    config: StoreConfig
    parts: list[PartEntry] = field(default_factory=list)
    next_part: int = 0
    next_shard: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ARRAY_TYPES, 0))

    def add(self, modality: str, cases: Sequence[PlannedCase]) -> PartPlan:
        """Append a part of these cases at numbers never used before, and return it."""
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
        """Return the layout that `to_json` gave."""
        parts = [PartEntry(**part) for part in value["parts"]]
        return cls(StoreConfig(**value["config"]), parts, value["next_part"], dict(value["next_shard"]))


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


def load_layout(root: Blobs, modality: str) -> StoreLayout:
    """Read the recorded plan of a modality, without the cases of its parts.

    Raises:
        StorageError: If there is none, or another version of this project wrote it.
    """
    found = read_layout(root.below(modality))
    if found is None:
        raise StorageError(
            f"{root.below(modality).url}/{LAYOUT}: expected the plan of store {modality}, found none; plan its parts "
            "first"
        )
    return found[0]


def read_layout(group: Blobs) -> tuple[StoreLayout, str] | None:
    """Return the recorded plan and its version, or None; errors as in `load_layout`."""
    found = group.read_version(LAYOUT)
    if found is None:
        return None
    return StoreLayout.from_json(opened(group, LAYOUT, found[0])), found[1]


def load_plan(root: Blobs, modality: str, part_ids: Collection[str] | None = None) -> list[PartPlan]:
    """Return the recorded parts of a modality with their cases.

    Args:
        root: Place of all stores.
        modality: Canonical modality name.
        part_ids: Which parts; None: all of them.

    Raises:
        StorageError: As `load_layout` does.
        IntegrityError: If a list of cases is missing or altered; repair tells it from the rows.
    """
    group, layout = root.below(modality), load_layout(root, modality)
    chosen = [part for part in layout.parts if part_ids is None or part.part_id in part_ids]
    return [with_cases(group, layout.config, part) for part in chosen]


def with_cases(group: Blobs, config: StoreConfig, part: PartEntry) -> PartPlan:
    """Return a part with its cases; errors as in `load_plan`."""
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
    """Return the value of a sealed file, after a look at its version, for older ones are sealed in another way."""
    where = f"{group.url}/{key}"
    version = parse_json(data, where).get("format_version")
    if version != STORE_VERSION:
        raise StorageError(
            f"{where}: expected store format {STORE_VERSION}, found {version}; move {group.url} away and materialise "
            "the store again"
        )
    return unseal(data, where)
