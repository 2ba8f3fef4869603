"""How parts of sharded arrays are committed and published; slice stores and teacher caches share it.

What belongs here: when a part counts, what commits it, what is missing, publishing. Not here: what a part holds, which
parts there are, who may enter while one is written.

A part is committed by its fragment, a small JSON file written last. Publishing gathers the fragments into the manifest,
without which nothing is read. `docs/store_format.md` describes the files.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from storage.base.blobs import Blobs, seal, unseal
from storage.base.errors import IntegrityError
from storage.shards.arrays import ArrayLayout
from storage.shards.fragments import MANIFEST, FragmentT, Manifest


class Part(Protocol):
    """The unit of commit: what owns shards that nobody else writes."""

    @property
    def part_id(self) -> str:
        """Its name."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 hex digest of what determines its content."""


PartT = TypeVar("PartT", bound=Part)


def fragment_key(part_id: str) -> str:
    """Return the key of the fragment whose presence commits a part."""
    return f"parts/{part_id}.json"


@dataclass(frozen=True)
class PartFiles(Generic[FragmentT]):
    """The written parts of one store or cache.

    Attributes:
        place: Where its zarr group lies.
        layouts: Array name -> how it lies there.
        kind: Type of its fragments.
        what: What it is called in errors.
    """

    place: Blobs
    layouts: Mapping[str, ArrayLayout]
    kind: type[FragmentT]
    what: str

    def fragment(self, part_id: str) -> FragmentT | None:
        """Return a fragment as it was sealed; None if there is none or it is altered, so that its part is missing."""
        try:
            return self.kind.from_json(unseal(self.place.read(fragment_key(part_id)), part_id))
        except (FileNotFoundError, IntegrityError):
            return None

    def committed(self, part: Part, sizes: Mapping[str, int] | None = None) -> FragmentT | None:
        """Return the fragment of a part that is there, whole and of the planned fingerprint, else None.

        Args:
            part: The part.
            sizes: Bytes of every blob by key; None: each is asked for.
        """
        size_of = self.place.size if sizes is None else sizes.get
        if size_of(fragment_key(part.part_id)) is None:
            return None
        fragment = self.fragment(part.part_id)
        if fragment is None or fragment.fingerprint != part.fingerprint:
            return None
        expected = {key: file.n_bytes for key, file in fragment.files().items()}
        expected |= {self.layouts[record.array].key(record.shard): record.n_bytes for record in fragment.shards}
        return fragment if all(size_of(key) == n_bytes for key, n_bytes in expected.items()) else None

    def missing(self, parts: Sequence[PartT]) -> list[PartT]:
        """Return the parts that are not committed; looks at the presence and size of blobs, not at their content."""
        # One listing answers for many parts, a few questions for one.
        sizes = self.place.sizes() if len(parts) > 1 else None
        return [part for part in parts if self.committed(part, sizes) is None]

    def write(self, part: Part, make: Callable[[], FragmentT]) -> FragmentT:
        """Write a part that is not committed, and commit it.

        Args:
            part: The part.
            make: Writes all blobs of the part but the fragment, which it returns.

        Raises:
            IntegrityError: If another process has meanwhile committed the part with other bytes.
        """
        key = fragment_key(part.part_id)
        # What commits a part that is not whole would commit what is about to be written before it is there.
        self.place.delete(key)
        fragment = make()
        data = seal(fragment.to_json())
        if not self.place.create(key, data) and self.place.read(key) != data:
            raise IntegrityError(
                f"{self.place.url}/{key}: expected the fragment just written, found another writer's with other bytes; "
                "use one version of this project and its libraries on all machines, delete the fragment and run again"
            )
        return fragment

    def gather(self, parts: Sequence[Part]) -> tuple[FragmentT, ...]:
        """Return the fragments of all parts.

        Raises:
            IntegrityError: If one is missing.
        """
        sizes = self.place.sizes()
        found = [(part.part_id, self.committed(part, sizes)) for part in parts]
        missing = [part_id for part_id, fragment in found if fragment is None]
        if missing:
            raise IntegrityError(
                f"{self.what}: expected {len(found)} whole parts, found {len(missing)} missing: "
                f"{', '.join(missing[:5])}; write them, then publish again"
            )
        return tuple(fragment for _, fragment in found if fragment is not None)

    def publish(self, manifest: Manifest[FragmentT], files: Mapping[str, bytes], before: str | None) -> None:
        """Publish the other files that readers need, then the manifest.

        Args:
            manifest: What is published.
            files: Key -> content; those that are there already are left.
            before: Version of the manifest to replace, as `Blobs.read_version` gave it; None if there was none.

        Raises:
            BusyError: If the manifest has been replaced since.
        """
        for key, data in files.items():
            found = self.place.read_version(key)
            if found is None or found[0] != data:
                self.place.put(key, data)
        self.place.replace(MANIFEST, seal(manifest.to_json()), before)


def withdraw_parts(place: Blobs, part_ids: Iterable[str]) -> None:
    """Take back what commits these parts, so that they are missing and are written again."""
    for part_id in part_ids:
        place.delete(fragment_key(part_id))
