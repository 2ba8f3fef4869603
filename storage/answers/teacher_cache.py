"""The teacher's answers for a training plan, stored in plan order.

What belongs here: writing, publishing and reading such a cache. Not here: who computes the answers, how the cache is
cut (`storage.answers.cache_plan`), values encoded (`storage.answers.encodings`) or shards written
(`storage.shards.arrays`).

Axis 0 of every array is the slot in plan order, so training reads a cache from front to back. `header.json` says what
the answers were made from; a part is committed by its fragment, written last; `manifest.json` publishes them.
`docs/store_format.md` describes the files for readers without this code.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from typing import Any, Final

import numpy.typing as npt

from storage.answers.cache_plan import CACHE_VERSION, CachePart, CacheSpec, as_stored
from storage.answers.encodings import Floats
from storage.base.blobs import Blobs, seal, unseal
from storage.base.errors import IntegrityError, StorageError
from storage.base.fingerprints import combine, require_same
from storage.shards.arrays import (
    ARRAY_METADATA,
    ArrayLayout,
    ShardRecord,
    group_metadata,
    put_shard,
    record_from,
    record_problem,
)
from storage.shards.reader import ShardReader

_HEADER: Final = "header.json"
_MANIFEST: Final = "manifest.json"
_REMEDY: Final = "materialise the cache again"


def missing_parts(root: Blobs, spec: CacheSpec, parts: Sequence[CachePart]) -> list[CachePart]:
    """Return the parts that are not on disk, whole and of the planned fingerprint.

    Raises:
        FingerprintMismatchError: If the place holds a cache made from something else.
    """
    _require_header(root, spec)
    return [part for part in parts if _committed(root, spec, part) is None]


def _require_header(root: Blobs, spec: CacheSpec) -> bool:
    """Return whether there is a header as it was written; one of another cache is refused."""
    if root.size(_HEADER) is None:
        return False
    try:
        header = _sealed(root, _HEADER)
    except IntegrityError:
        return False
    remedy = f"move {root.url} away, or ask for the cache with the inputs it was made from"
    require_same(_named(root), spec.header(), header, remedy)
    return True


def _named(root: Blobs) -> str:
    return f"the teacher cache in {root.url}"


def _sealed(root: Blobs, key: str) -> dict[str, Any]:
    return unseal(root.read(key), f"{root.url}/{key}", _REMEDY)


def _fragment_key(part: CachePart) -> str:
    return f"parts/{part.part_id}.json"


def _committed(root: Blobs, spec: CacheSpec, part: CachePart) -> dict[str, Any] | None:
    if root.size(_fragment_key(part)) is None:
        return None
    try:
        fragment = _sealed(root, _fragment_key(part))
    except IntegrityError:
        return None
    layouts = spec.layouts()
    whole = fragment["fingerprint"] == part.fingerprint and not any(
        record_problem(root, layouts[shard["array"]], record_from(shard)) for shard in fragment["shards"]
    )
    return fragment if whole else None


def write_part(root: Blobs, spec: CacheSpec, part: CachePart, answers: Mapping[str, Floats]) -> dict[str, Any]:
    """Encode and write one part: its shards, then the fragment that commits it; a whole part is left as it is.

    Shards lie where the plan puts their slots, so a part of other slots overwrites the one before it. The cache is
    therefore unpublished, and the old fragment withdrawn, before the first byte is replaced.

    Args:
        root: Place of the cache.
        spec: The cache.
        part: One of its parts.
        answers: Array name -> (stop - start, *tail) float32.

    Returns:
        The fragment.

    Raises:
        BusyError: If another process is publishing this cache, or reads one that this part would change.
        StorageError: If an array is missing, has another shape, or holds a value its encoding cannot.
        FingerprintMismatchError: If the place holds a cache made from something else.
    """
    encoded = _encoded(spec, part, answers)
    with being_written(root):
        if not _require_header(root, spec):
            root.put(_HEADER, seal(spec.header()))
        fragment = _committed(root, spec, part)
        if fragment is None:
            _unpublish(root)
            root.delete(_fragment_key(part))
            layouts = spec.layouts()
            records = [
                record for name, values in encoded.items() for record in _write_array(root, layouts[name], part, values)
            ]
            fragment = {**asdict(part), "shards": [asdict(record) for record in records]}
            root.put(_fragment_key(part), seal(fragment))
    return fragment


def _unpublish(root: Blobs) -> None:
    """Withdraw the manifest, without which nobody opens the cache; refused while somebody reads it."""
    if root.size(_MANIFEST) is not None:
        with _readers(root).exclusive(_named(root)):
            root.delete(_MANIFEST)


def _require_published(root: Blobs) -> None:
    if root.size(_MANIFEST) is None:
        raise StorageError(f"{root.url}: expected a published teacher cache, found none; materialise it")


def _readers(root: Blobs) -> Blobs:
    """Return the place whose lock readers share."""
    return root.below("readers")


def being_written(root: Blobs) -> AbstractContextManager[None]:
    """Keep a cache from being published or deleted for a block; other writers may enter.

    Raises:
        BusyError: If it is about to be.
    """
    return root.shared(_named(root))


def being_read(root: Blobs) -> AbstractContextManager[None]:
    """Keep a cache's answers as they are for a block: neither replaced nor deleted.

    Raises:
        StorageError: If the cache is not published.
        BusyError: If its answers are about to be replaced or deleted.
    """
    _require_published(root)
    return _readers(root).shared(_named(root))


@contextmanager
def alone(root: Blobs) -> Iterator[None]:
    """Keep writers, publishers and readers out of a cache for a block.

    Raises:
        BusyError: If one of them is at work.
    """
    what = _named(root)
    with root.exclusive(what), _readers(root).exclusive(what):
        yield


def _encoded(spec: CacheSpec, part: CachePart, answers: Mapping[str, Floats]) -> dict[str, npt.NDArray[Any]]:
    expected = {name: (part.stop - part.start, *array.tail) for name, array in spec.arrays.items()}
    found = {name: values.shape for name, values in answers.items()}
    if expected != found:
        raise StorageError(f"{part.part_id}: expected answers {expected}, found {found}; pass every array of the part")
    return {
        name + suffix: stored
        for name, array in spec.arrays.items()
        for suffix, stored in array.codec().encode(answers[name]).items()
    }


def _write_array(root: Blobs, layout: ArrayLayout, part: CachePart, values: npt.NDArray[Any]) -> list[ShardRecord]:
    records = []
    for start in range(0, len(values), layout.shard):
        block = values[start : start + layout.shard]
        records.append(put_shard(root, layout, (part.start + start) // layout.shard, layout.encode(block)))
    return records


def publish(root: Blobs, spec: CacheSpec, parts: Sequence[CachePart]) -> dict[str, Any]:
    """Publish a cache whose parts are all there, and clear away what killed writers left.

    Returns:
        The manifest.

    Raises:
        BusyError: If another process is writing or publishing this cache.
        FingerprintMismatchError: If the place holds a cache made from something else.
        IntegrityError: If a part is missing.
    """
    with root.exclusive(_named(root)):
        missing = [part.part_id for part in missing_parts(root, spec, parts)]
        if missing or len(parts) != spec.n_parts:
            raise IntegrityError(
                f"{root.url}: expected {spec.n_parts} whole parts, found {len(parts) - len(missing)}, without "
                f"{', '.join(missing[:5])}; write them, then publish again"
            )
        fragments = [_sealed(root, _fragment_key(part)) for part in parts]
        manifest = {
            "format_version": CACHE_VERSION,
            "fingerprint": combine(part.fingerprint for part in parts),
            "parts": [asdict(part) for part in parts],
            "shards": [{**shard, "part_id": item["part_id"]} for item in fragments for shard in item["shards"]],
        }
        root.put(_HEADER, seal(spec.header()))
        root.put(ARRAY_METADATA, group_metadata())
        for name, layout in spec.layouts().items():
            root.put(f"{name}/{ARRAY_METADATA}", layout.metadata(spec.n_slots))
        root.put(_MANIFEST, seal(manifest))
        root.sweep()
    return manifest


class TeacherCache:
    """Reads a published cache; opens its files when first read from in each process, and may be pickled.

    Attributes:
        spec: What the cache holds and was made from.
        fingerprint: Of all its parts.
    """

    def __init__(
        self, root: Blobs, made_from: Mapping[str, Any] | None = None, *, fingerprint: str | None = None
    ) -> None:
        """Open a cache.

        Args:
            root: Place of the cache.
            made_from: What the caller expects it to be made from; None takes any.
            fingerprint: The one `publish` gave, which covers the content of every slot; None takes any.

        Raises:
            StorageError: If it is not published, or another version of this project wrote it.
            FingerprintMismatchError: If it was made from something else.
        """
        _require_published(root)
        manifest, header = _sealed(root, _MANIFEST), _sealed(root, _HEADER)
        if manifest["format_version"] != CACHE_VERSION:
            raise StorageError(
                f"{root.url}: expected cache format {CACHE_VERSION}, found {manifest['format_version']}; move it away "
                "and materialise the cache again"
            )
        what, remedy = _named(root), _REMEDY
        if made_from is not None:
            require_same(what, as_stored(dict(made_from)), header["made_from"], remedy)
        if fingerprint is not None:
            require_same(what, {"slots": fingerprint}, {"slots": manifest["fingerprint"]}, remedy)
        self.spec = CacheSpec.from_header(header)
        self.fingerprint: str = manifest["fingerprint"]
        layouts = list(self.spec.layouts().values())
        self._reader = ShardReader(root, layouts, manifest["shards"], remedy)

    def __len__(self) -> int:
        return self.spec.n_slots

    def read(self, name: str, start: int, stop: int) -> Floats:
        """Return the answers of slots `start:stop` in plan order, (stop - start, *tail) float32.

        Raises:
            IndexError: If the slots are not of this cache.
            StorageError: If it has no such array.
            IntegrityError: If bytes are missing or fail their checksum.
        """
        if name not in self.spec.arrays:
            raise StorageError(f"teacher cache: expected one of {sorted(self.spec.arrays)}, found {name!r}")
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"slots: expected a range within 0 to {len(self)}, found {start} to {stop}")
        array = self.spec.arrays[name]
        codec = array.codec()
        return codec.decode(_Components(self._reader, name, tuple(codec.components(array.tail)), start, stop))


class _Components(Mapping[str, npt.NDArray[Any]]):
    """The stored components of some slots; each is read when looked at, for a decoder may not need all of them."""

    def __init__(self, reader: ShardReader, name: str, suffixes: tuple[str, ...], start: int, stop: int) -> None:
        self._reader, self._name, self._suffixes, self._start, self._stop = reader, name, suffixes, start, stop

    def __getitem__(self, suffix: str) -> npt.NDArray[Any]:
        return self._reader.read(self._name + suffix, self._start, self._stop)

    def __iter__(self) -> Iterator[str]:
        return iter(self._suffixes)

    def __len__(self) -> int:
        return len(self._suffixes)
