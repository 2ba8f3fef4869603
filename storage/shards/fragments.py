"""The records of stores and caches: of a shard, of a part (its fragment), and of all parts (the manifest).

What belongs here: these values and their JSON. Not here: when a part is committed (`storage.shards.parts`), the fields
that a store or a cache adds.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Generic, Self, TypeVar

from storage.base.blobs import JsonObject
from storage.base.file_records import FileRecord

MANIFEST: Final = "manifest.json"


@dataclass(frozen=True)
class ShardRecord:
    """A published shard.

    Attributes:
        array: Name of its array.
        shard: Its number along axis 0.
        n_bytes: Size of its blob.
        sha256: Hex digest of its blob.
    """

    array: str
    shard: int
    n_bytes: int
    sha256: str


@dataclass(frozen=True)
class Fragment:
    """The content of a written part. It is kept as a sealed JSON file; the presence of this file commits the part.

    Attributes:
        part_id: The part.
        fingerprint: SHA-256 hex digest of the inputs that determine the content of the part.
        shards: Its shards.
    """

    part_id: str
    fingerprint: str
    shards: tuple[ShardRecord, ...]

    def files(self) -> dict[str, FileRecord]:
        """Return the part's blobs other than shards, by key."""
        return {}

    def entry(self) -> dict[str, object]:
        """Return the part's entry in the manifest as JSON: every field but the shards."""
        return {name: value for name, value in vars(self).items() if name != "shards"}

    def to_json(self) -> dict[str, object]:
        """Return the content of the fragment's file."""
        return {**self.entry(), "shards": [vars(record) for record in self.shards]}

    @classmethod
    def from_json(cls, value: JsonObject) -> Self:
        """Return the fragment from the JSON of `to_json`."""
        return cls(**{**value, "shards": tuple(ShardRecord(**record) for record in value["shards"])})


FragmentT = TypeVar("FragmentT", bound=Fragment)


@dataclass(frozen=True)
class Manifest(Generic[FragmentT]):
    """The published parts; only these may be read.

    Attributes:
        format_version: Version of the file format.
        fingerprint: Fingerprint of all parts together.
        fragments: Fragments of all parts, in order.
    """

    format_version: int
    fingerprint: str
    fragments: tuple[FragmentT, ...]

    def shards(self) -> Iterator[ShardRecord]:
        """Yield the records of all parts' shards."""
        return (record for fragment in self.fragments for record in fragment.shards)

    def n_bytes(self) -> int:
        """Return the bytes of all shards."""
        return sum(record.n_bytes for record in self.shards())

    def to_json(self) -> dict[str, object]:
        """Return the content of `manifest.json`."""
        return {
            "format_version": self.format_version,
            "fingerprint": self.fingerprint,
            "parts": [fragment.entry() for fragment in self.fragments],
            "shards": [
                {**vars(record), "part_id": fragment.part_id}
                for fragment in self.fragments
                for record in fragment.shards
            ],
        }


def fragments_from(kind: type[FragmentT], manifest: Mapping[str, list[JsonObject]]) -> tuple[FragmentT, ...]:
    """Return the fragments from the `parts` and `shards` of a manifest's JSON."""
    shards: dict[str, list[JsonObject]] = {entry["part_id"]: [] for entry in manifest["parts"]}
    for shard in manifest["shards"]:
        shards[shard["part_id"]].append({name: value for name, value in shard.items() if name != "part_id"})
    return tuple(kind.from_json({**entry, "shards": shards[entry["part_id"]]}) for entry in manifest["parts"])
