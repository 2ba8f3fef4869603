"""What stores and caches say of their parts: records of shards, the fragment of a part, the manifest over all.

What belongs here: these values and their JSON. Not here: when a part counts (`storage.shards.parts`), what a store or a
cache adds to them.
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
    """What a written part consists of; kept as a sealed JSON file whose presence commits the part.

    Attributes:
        part_id: The part.
        fingerprint: SHA-256 hex digest of what determines its content.
        shards: Its shards.
    """

    part_id: str
    fingerprint: str
    shards: tuple[ShardRecord, ...]

    def files(self) -> dict[str, FileRecord]:
        """Return the blobs that the part has beside its shards, by key."""
        return {}

    def entry(self) -> dict[str, object]:
        """Return, as JSON, what the manifest repeats of it in one place: all but the shards."""
        return {name: value for name, value in vars(self).items() if name != "shards"}

    def to_json(self) -> dict[str, object]:
        """Return the content of its file."""
        return {**self.entry(), "shards": [vars(record) for record in self.shards]}

    @classmethod
    def from_json(cls, value: JsonObject) -> Self:
        """Return the fragment that `to_json` gave."""
        return cls(**{**value, "shards": tuple(ShardRecord(**record) for record in value["shards"])})


FragmentT = TypeVar("FragmentT", bound=Fragment)


@dataclass(frozen=True)
class Manifest(Generic[FragmentT]):
    """What is published: nothing else may be read.

    Attributes:
        format_version: Of the files.
        fingerprint: Over all parts.
        fragments: Of all parts, in order.
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
    """Return the fragments that a manifest's `parts` and `shards` repeat."""
    shards: dict[str, list[JsonObject]] = {entry["part_id"]: [] for entry in manifest["parts"]}
    for shard in manifest["shards"]:
        shards[shard["part_id"]].append({name: value for name, value in shard.items() if name != "part_id"})
    return tuple(kind.from_json({**entry, "shards": shards[entry["part_id"]]}) for entry in manifest["parts"])
