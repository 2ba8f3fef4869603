"""Committing and publishing parts of sharded arrays, for slice stores and teacher caches alike.

What belongs here: committing a part, finding missing parts, publishing. Not here: the content of a part, the plan of
parts, the locks.

A part is committed by its fragment, a small JSON file written last. Publishing collects the fragments in the manifest;
without a manifest nothing is read. `docs/store_format.md` describes the files.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from storage.base.blobs import Blobs, seal, unseal
from storage.base.errors import IntegrityError
from storage.shards.arrays import ArrayLayout
from storage.shards.fragments import MANIFEST, FragmentT, Manifest


class Part(Protocol):
    """The unit of commit: it owns its shards, and no other part writes them."""

    @property
    def part_id(self) -> str:
        """Its name."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 hex digest of the inputs that determine its content."""


PartT = TypeVar("PartT", bound=Part)


def fragment_key(part_id: str) -> str:
    """Return the key of the fragment whose presence commits a part."""
    return f"parts/{part_id}.json"


@dataclass(frozen=True)
class PartFiles(Generic[FragmentT]):
    """The written parts of one store or cache.

    Attributes:
        place: Place of its zarr group.
        layouts: Array name -> layout of the array.
        kind: Type of its fragments.
        what: Name of the store or cache in messages.
    """

    place: Blobs
    layouts: Mapping[str, ArrayLayout]
    kind: type[FragmentT]
    what: str

    def fragment(self, part_id: str) -> FragmentT | None:
        """Return the fragment of a part; None if it is missing or altered, in which case the part counts as missing."""
        try:
            return self.kind.from_json(unseal(self.place.read(fragment_key(part_id)), part_id))
        except (FileNotFoundError, IntegrityError):
            return None

    def committed(self, part: Part, sizes: Mapping[str, int] | None = None) -> FragmentT | None:
        """Return the fragment of a part if the part is complete and has the planned fingerprint, else None.

        Args:
            part: The part.
            sizes: Bytes of every blob by key, from a listing; None: each size is looked up.
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
        # For many parts one listing is faster, for one part a few look-ups.
        sizes = self.place.sizes() if len(parts) > 1 else None
        return [part for part in parts if self.committed(part, sizes) is None]

    def write(self, part: Part, make: Callable[[], FragmentT]) -> FragmentT:
        """Write and commit a part that is not committed yet.

        Args:
            part: The part.
            make: Writes all blobs of the part except the fragment, and returns the fragment.

        Raises:
            IntegrityError: If another process has committed the part with other bytes in the meantime.
        """
        key = fragment_key(part.part_id)
        # An old fragment of an incomplete part would commit the new blobs before all of them are written.
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
            files: Key -> content; files that already exist with this content are not written again.
            before: Version of the manifest to replace, as `Blobs.read_version` returned it; None if there was none.

        Raises:
            BusyError: If the manifest has been replaced since.
        """
        for key, data in files.items():
            found = self.place.read_version(key)
            if found is None or found[0] != data:
                self.place.put(key, data)
        self.place.replace(MANIFEST, seal(manifest.to_json()), before)


def withdraw_parts(place: Blobs, part_ids: Iterable[str]) -> None:
    """Delete the fragments of these parts, so that the parts count as missing and are written again."""
    for part_id in part_ids:
        place.delete(fragment_key(part_id))
