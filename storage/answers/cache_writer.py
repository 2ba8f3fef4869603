"""Writing teacher caches: parts, then the manifest that publishes them.

What belongs here: finding missing parts, encoding and writing a part, publishing. Not here: computing the answers, the
plan of parts (`storage.answers.cache_plan`), committing a part (`storage.shards.parts`), reading
(`storage.answers.teacher_cache`).
"""

from collections.abc import Mapping, Sequence

from storage.answers.cache_locks import unpublish, writing_access
from storage.answers.cache_manifest import HEADER, CacheFragment, CacheManifest, cache_name, cache_parts, read_sealed
from storage.answers.cache_plan import CACHE_VERSION, CachePart, CacheSpec
from storage.answers.encodings import Floats
from storage.base.blobs import Blobs, seal
from storage.base.errors import IntegrityError, StorageError
from storage.base.fingerprints import combine, require_same
from storage.shards.arrays import ArrayLayout, Elements
from storage.shards.fragments import MANIFEST, ShardRecord
from storage.shards.metadata import metadata_files
from storage.shards.writing import put_shard


def missing_parts(root: Blobs, spec: CacheSpec, parts: Sequence[CachePart]) -> list[CachePart]:
    """Return the parts that are missing or incomplete on disk, or have another fingerprint than planned.

    Raises:
        FingerprintMismatchError: If the place holds a cache that was made from other inputs.
    """
    _require_header(root, spec)
    return cache_parts(root, spec).missing(parts)


def _require_header(root: Blobs, spec: CacheSpec) -> bool:
    """Return whether an unaltered header exists; raise if it is the header of another cache."""
    if root.size(HEADER) is None:
        return False
    try:
        header = read_sealed(root, HEADER)
    except IntegrityError:
        return False
    remedy = f"move {root.url} away, or ask for the cache with the inputs it was made from"
    require_same(cache_name(root), spec.header(), header, remedy)
    return True


def write_part(root: Blobs, spec: CacheSpec, part: CachePart, answers: Mapping[str, Floats]) -> CacheFragment:
    """Encode and write one part: its shards, then the fragment that commits it. A complete part is not written again.

    The slots of a part determine its shards, so a part with other content overwrites the shards of the part before it.
    Therefore the cache is unpublished, and the old fragment deleted, before the first byte is replaced.

    Args:
        root: Place of the cache.
        spec: The cache.
        part: One of its parts.
        answers: Array name -> (stop - start, *tail) float32.

    Returns:
        The fragment.

    Raises:
        BusyError: If another process is publishing this cache, or reads it while this part would change it.
        StorageError: If an array is missing, has another shape, or holds a value that its encoding cannot store.
        FingerprintMismatchError: If the place holds a cache that was made from other inputs.
        IntegrityError: If another process has written the part with other bytes in the meantime.
    """
    encoded = _encoded(spec, part, answers)
    with writing_access(root):
        if not _require_header(root, spec):
            root.put(HEADER, seal(spec.header()))
        parts = cache_parts(root, spec)
        found = parts.committed(part)
        if found is not None:
            return found
        unpublish(root)
        return parts.write(part, lambda: _written(root, spec, part, encoded))


def _encoded(spec: CacheSpec, part: CachePart, answers: Mapping[str, Floats]) -> dict[str, Elements]:
    expected = {name: (part.stop - part.start, *array.tail) for name, array in spec.arrays.items()}
    found = {name: values.shape for name, values in answers.items()}
    if expected != found:
        raise StorageError(f"{part.part_id}: expected answers {expected}, found {found}; pass every array of the part")
    return {
        name + suffix: stored
        for name, array in spec.arrays.items()
        for suffix, stored in array.codec().encode(answers[name]).items()
    }


def _written(root: Blobs, spec: CacheSpec, part: CachePart, encoded: Mapping[str, Elements]) -> CacheFragment:
    layouts = spec.layouts()
    records = [record for name, values in encoded.items() for record in _write_array(root, layouts[name], part, values)]
    return CacheFragment(part.part_id, part.fingerprint, tuple(records), part.start, part.stop)


def _write_array(root: Blobs, layout: ArrayLayout, part: CachePart, values: Elements) -> list[ShardRecord]:
    records = []
    for start in range(0, len(values), layout.shard):
        block = values[start : start + layout.shard]
        records.append(put_shard(root, layout, (part.start + start) // layout.shard, layout.encode(block)))
    return records


def publish(root: Blobs, spec: CacheSpec, parts: Sequence[CachePart]) -> CacheManifest:
    """Publish a cache whose parts are all written, and delete the temporary files of killed writers.

    Returns:
        The manifest.

    Raises:
        BusyError: If another process is writing or publishing this cache.
        FingerprintMismatchError: If the place holds a cache that was made from other inputs.
        StorageError: If `parts` are not all parts of the cache.
        IntegrityError: If a part is missing.
    """
    if len(parts) != spec.n_parts:
        raise StorageError(f"{root.url}: expected {spec.n_parts} parts, found {len(parts)}; pass the whole plan")
    with root.exclusive(cache_name(root)):
        _require_header(root, spec)
        before = root.read_version(MANIFEST)
        written = cache_parts(root, spec)
        fragments = written.gather(parts)
        digest = combine(fragment.fingerprint for fragment in fragments)
        manifest = CacheManifest(CACHE_VERSION, digest, fragments)
        written.publish(manifest, described(spec), before and before[1])
        root.sweep()
    return manifest


def described(spec: CacheSpec) -> dict[str, bytes]:
    """Return the header and the `zarr.json` files of a cache, by key."""
    metadata = metadata_files((layout, spec.n_slots) for layout in spec.layouts().values())
    return {HEADER: seal(spec.header()), **metadata}
