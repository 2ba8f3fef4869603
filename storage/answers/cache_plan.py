"""The plan of a teacher cache: its arrays, its parts and its inputs.

What belongs here: the specification, its header, the plan of parts. Not here: files (`storage.answers.cache_manifest`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from storage.answers.encodings import ENCODINGS, Encoding
from storage.base.blobs import JsonObject
from storage.base.errors import StorageError
from storage.base.fingerprints import canonical_json, combine, fingerprint
from storage.shards.arrays import ArrayLayout

CACHE_VERSION: Final = 2
"""Raised by hand whenever the stored form of the same answers changes."""


@dataclass(frozen=True)
class ArraySpec:
    """One kind of answer.

    Attributes:
        tail: Shape of one slot's answer.
        encoding: Key of its encoding in `storage.answers.encodings.ENCODINGS`.
    """

    tail: tuple[int, ...]
    encoding: str

    def codec(self) -> Encoding:
        """Return the encoding.

        Raises:
            StorageError: If no encoding has that name.
        """
        if self.encoding not in ENCODINGS:
            raise StorageError(f"encoding: expected one of {sorted(ENCODINGS)}, found {self.encoding!r}")
        return ENCODINGS[self.encoding]


@dataclass(frozen=True)
class CacheSpec:
    """The specification of a cache: its arrays, how they are cut, and its inputs.

    Attributes:
        arrays: Name -> kind of answer.
        n_slots: Number of slots in the plan.
        slots_per_chunk: Slots in an inner chunk, which is decompressed as a whole.
        slots_per_shard: Slots in a shard, a multiple of `slots_per_chunk`.
        shards_per_part: Shards of each array that one part owns.
        made_from: Plain value that determines the answers: plan, teacher, preprocessing.
    """

    arrays: Mapping[str, ArraySpec]
    n_slots: int
    slots_per_chunk: int
    slots_per_shard: int
    shards_per_part: int
    made_from: Mapping[str, object]

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            StorageError: If one is out of range or an encoding is unknown.
        """
        for name in ("n_slots", "slots_per_chunk", "slots_per_shard", "shards_per_part"):
            if getattr(self, name) < 1:
                raise StorageError(f"{name}: expected at least 1, found {getattr(self, name)}")
        if self.slots_per_shard % self.slots_per_chunk:
            raise StorageError(
                f"slots_per_shard: expected a multiple of slots_per_chunk {self.slots_per_chunk}, "
                f"found {self.slots_per_shard}"
            )
        for array in self.arrays.values():
            array.codec()

    @property
    def slots_per_part(self) -> int:
        """Number of slots in every part but the last."""
        return self.slots_per_shard * self.shards_per_part

    @property
    def n_parts(self) -> int:
        """Number of parts."""
        return -(-self.n_slots // self.slots_per_part)

    def layouts(self) -> dict[str, ArrayLayout]:
        """Return the layout of each stored array, by its name in the zarr group."""
        return {
            name + suffix: ArrayLayout(name + suffix, dtype, tail, self.slots_per_chunk, self.slots_per_shard)
            for name, array in self.arrays.items()
            for suffix, (dtype, tail) in array.codec().components(array.tail).items()
        }

    def header(self) -> JsonObject:
        """Return the content of `header.json`."""
        sizes = ("n_slots", "slots_per_chunk", "slots_per_shard", "shards_per_part")
        header = {
            "format_version": CACHE_VERSION,
            "arrays": {name: _described(array) for name, array in self.arrays.items()},
            "made_from": dict(self.made_from),
            **{name: getattr(self, name) for name in sizes},
        }
        return as_stored(header)

    @classmethod
    def from_header(cls, header: JsonObject) -> "CacheSpec":
        """Return the specification that a header describes."""
        arrays = {name: ArraySpec(tuple(value["shape"]), value["encoding"]) for name, value in header["arrays"].items()}
        sizes = ("n_slots", "slots_per_chunk", "slots_per_shard", "shards_per_part")
        return cls(arrays=arrays, made_from=header["made_from"], **{name: header[name] for name in sizes})


def as_stored(value: Mapping[str, object]) -> JsonObject:
    """Return a plain value as it is read back from JSON (tuples become lists), to compare it with a stored value."""
    stored: JsonObject = json.loads(canonical_json(dict(value)))
    return stored


def _described(array: ArraySpec) -> dict[str, object]:
    codec = array.codec()
    formula = {"decoding": codec.decoding, "max_error": codec.max_error}
    return {"shape": list(array.tail), "encoding": codec.name, **formula}


@dataclass(frozen=True)
class CachePart:
    """The unit of commit: a range of consecutive slots.

    Attributes:
        part_id: Its name, `part-` and its number.
        start: First slot.
        stop: One past the last slot.
        fingerprint: SHA-256 of the inputs that determine its answers.
    """

    part_id: str
    start: int
    stop: int
    fingerprint: str


def plan_cache_parts(spec: CacheSpec, slot_fingerprints: Sequence[str]) -> list[CachePart]:
    """Return the parts of a cache.

    Args:
        spec: The cache.
        slot_fingerprints: One for each part: the fingerprint of the part's slots in the plan.

    Raises:
        StorageError: If the number of fingerprints differs from the number of parts.
    """
    if len(slot_fingerprints) != spec.n_parts:
        raise StorageError(
            f"slot_fingerprints: expected {spec.n_parts}, one for every {spec.slots_per_part} slots, "
            f"found {len(slot_fingerprints)}"
        )
    made_from = fingerprint(spec.header())
    starts = range(0, spec.n_slots, spec.slots_per_part)
    return [
        CachePart(
            f"part-{number:05d}",
            start,
            min(start + spec.slots_per_part, spec.n_slots),
            combine([made_from, str(start), slots]),
        )
        for number, (start, slots) in enumerate(zip(starts, slot_fingerprints, strict=True))
    ]
