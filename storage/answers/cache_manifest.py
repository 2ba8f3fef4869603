"""The descriptive files of a teacher cache: its header, the fragments of its parts, its manifest.

What belongs here: these files and reading them. Not here: planning a cache (`storage.answers.cache_plan`), when a part
is committed (`storage.shards.parts`).
"""

from dataclasses import dataclass
from typing import Final, Self

from storage.answers.cache_plan import CACHE_VERSION, CachePart, CacheSpec
from storage.base.blobs import Blobs, JsonObject, unseal
from storage.base.errors import StorageError
from storage.shards.fragments import MANIFEST, Fragment, Manifest, fragments_from
from storage.shards.parts import PartFiles

HEADER: Final = "header.json"
REMEDY: Final = "make the cache again"


@dataclass(frozen=True)
class CacheFragment(Fragment):
    """The content of a written part of a cache.

    Attributes:
        start: First slot.
        stop: One past the last slot.
    """

    start: int
    stop: int

    @property
    def part(self) -> CachePart:
        """The part that was written."""
        return CachePart(self.part_id, self.start, self.stop, self.fingerprint)


@dataclass(frozen=True)
class CacheManifest(Manifest[CacheFragment]):
    """The published parts of a cache."""

    @classmethod
    def from_json(cls, value: JsonObject) -> Self:
        """Return the manifest from the JSON of `to_json`."""
        return cls(value["format_version"], value["fingerprint"], fragments_from(CacheFragment, value))


def cache_name(root: Blobs) -> str:
    """Return the name of the cache at a place, for messages."""
    return f"the teacher cache in {root.url}"


def cache_parts(root: Blobs, spec: CacheSpec) -> PartFiles[CacheFragment]:
    """Return the written parts of a cache."""
    return PartFiles(root, spec.layouts(), CacheFragment, cache_name(root))


def read_sealed(root: Blobs, key: str) -> JsonObject:
    """Read a sealed file of a cache.

    Raises:
        FileNotFoundError: If the file is missing.
        IntegrityError: If the file is altered.
    """
    return unseal(root.read(key), f"{root.url}/{key}", REMEDY)


def require_published(root: Blobs) -> None:
    """Check that a cache is published.

    Raises:
        StorageError: If it has no manifest.
    """
    if root.size(MANIFEST) is None:
        raise StorageError(f"{root.url}: expected a published teacher cache, found none; make it")


def load_cache_manifest(root: Blobs) -> CacheManifest:
    """Read the manifest of a published cache.

    Raises:
        StorageError: If the cache is not published, or another version of this project wrote it.
        IntegrityError: If it is altered.
    """
    require_published(root)
    manifest = CacheManifest.from_json(read_sealed(root, MANIFEST))
    if manifest.format_version != CACHE_VERSION:
        raise StorageError(
            f"{root.url}: expected cache format {CACHE_VERSION}, found {manifest.format_version}; move it away "
            f"and {REMEDY}"
        )
    return manifest
