"""The manifest of a slice store and the fragments of its parts.

What belongs here: these values, their JSON, reading the manifest. Not here: the plan (`storage.slices.layout`), when a
part is committed (`storage.shards.parts`).
"""

from dataclasses import asdict, dataclass
from typing import Self

from storage.base.blobs import Blobs, JsonObject
from storage.base.errors import StorageError
from storage.base.file_records import FileRecord
from storage.shards.fragments import MANIFEST, Fragment, Manifest, fragments_from
from storage.shards.parts import PartFiles
from storage.slices.config import StoreConfig
from storage.slices.layout import opened
from storage.slices.planned import PartEntry, rows_key


@dataclass(frozen=True)
class SliceFragment(Fragment):
    """The content of a written part of a slice store.

    Attributes:
        format_version: Version of the store's file format.
        first_shard: Array name -> number of the first shard owned.
        n_shards: Array name -> number of shards owned.
        n_cases: Cases in it.
        n_slices: Slices of all cases.
        index: Size and hash of the blob with its index rows, at `rows_key`.
        plan: Size and hash of the blob with the list of its cases, at `plan_key`; written when the part was planned.
    """

    format_version: int
    first_shard: dict[str, int]
    n_shards: dict[str, int]
    n_cases: int
    n_slices: int
    index: FileRecord
    plan: FileRecord

    def files(self) -> dict[str, FileRecord]:
        """See `Fragment`."""
        return {rows_key(self.part_id): self.index}

    def entry(self) -> dict[str, object]:
        """See `Fragment`."""
        return {**super().entry(), "index": vars(self.index), "plan": vars(self.plan)}

    @classmethod
    def from_json(cls, value: JsonObject) -> Self:
        """See `Fragment`."""
        files = {name: FileRecord(**value[name]) for name in ("index", "plan")}
        return super().from_json({**value, **files})

    def as_planned(self, modality: str) -> PartEntry:
        """Return the part's entry in the plan."""
        return PartEntry(self.part_id, modality, self.fingerprint, self.n_cases, self.first_shard, self.n_shards)


@dataclass(frozen=True)
class StoreManifest(Manifest[SliceFragment]):
    """The published parts of a slice store.

    Attributes:
        modality: Canonical modality name.
        config: Configuration of the store.
        lengths: Array name -> elements along axis 0. Lengths only grow, so that a reader with an earlier manifest still
            finds its elements.
        next_part: The first unused part number.
    """

    modality: str
    config: StoreConfig
    lengths: dict[str, int]
    next_part: int

    def to_json(self) -> dict[str, object]:
        """See `Manifest`."""
        arrays = {
            name: {"dtype": array.dtype, "chunk": array.chunk, "shard": array.shard, "length": self.lengths[name]}
            for name, array in self.config.array_layouts().items()
        }
        own = {"modality": self.modality, "config": asdict(self.config), "next_part": self.next_part}
        return {**super().to_json(), **own, "arrays": arrays}

    @classmethod
    def from_json(cls, value: JsonObject) -> Self:
        """Return the manifest from the JSON of `to_json`."""
        return cls(
            value["format_version"],
            value["fingerprint"],
            fragments_from(SliceFragment, value),
            value["modality"],
            StoreConfig(**value["config"]),
            {name: array["length"] for name, array in value["arrays"].items()},
            value["next_part"],
        )


def slice_parts(root: Blobs, modality: str, config: StoreConfig) -> PartFiles[SliceFragment]:
    """Return the written parts of a modality's store."""
    return PartFiles(root.below(modality), config.array_layouts(), SliceFragment, f"slice store {modality}")


def load_manifest(root: Blobs, modality: str) -> StoreManifest:
    """Read the manifest of a published store.

    Raises:
        StorageError: If the store is not published, or another version of this project wrote it.
    """
    group = root.below(modality)
    try:
        data = group.read(MANIFEST)
    except FileNotFoundError:
        raise StorageError(
            f"{group.url}/{MANIFEST}: expected a published store, found none; make the slice store of {modality}"
        ) from None
    return StoreManifest.from_json(opened(group, MANIFEST, data))
