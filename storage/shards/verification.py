"""Verifying every published byte on disk, for stores and caches alike.

What belongs here: the expected blobs of fragments, reading them again, their damage. Not here: the other blobs of a
store or a cache, repairing them.

A manifest is sealed with its own hash. It determines the bytes of fragments and array metadata. A fragment records the
hashes of all other blobs. So an altered byte in any blob is found.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from storage.base.blobs import Blobs, seal
from storage.base.file_records import FileRecord
from storage.shards.arrays import ArrayLayout
from storage.shards.fragments import Fragment
from storage.shards.parts import fragment_key

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Damage:
    """A damaged blob.

    Attributes:
        key: Its key in the group.
        problem: What was expected and what was found.
        part_id: The part to write again; empty if publishing again is enough.
    """

    key: str
    problem: str
    part_id: str


@dataclass(frozen=True)
class Expected:
    """A blob whose size and hash are known.

    Attributes:
        key: Its key in the group.
        file: Its size and hash.
        part_id: The part to write again if the blob is damaged; empty if publishing again is enough.
    """

    key: str
    file: FileRecord
    part_id: str = ""


@dataclass(frozen=True)
class Comparison:
    """The result of a verification.

    Attributes:
        n_blobs: Number of expected blobs.
        n_bytes: Bytes read.
        damages: The damaged blobs, in the order of keys.
        unnamed: Keys of unexpected blobs, which nothing reads: killed writers left them, publishing deletes them.
    """

    n_blobs: int
    n_bytes: int
    damages: tuple[Damage, ...]
    unnamed: tuple[str, ...]


def expected_of_parts(fragments: Iterable[Fragment], layouts: Mapping[str, ArrayLayout]) -> Iterator[Expected]:
    """Yield every blob of parts: fragments, shards and the other files that fragments list."""
    for fragment in fragments:
        part_id = fragment.part_id
        for record in fragment.shards:
            key = layouts[record.array].key(record.shard)
            yield Expected(key, FileRecord(record.n_bytes, record.sha256), part_id)
        for key, file in fragment.files().items():
            yield Expected(key, file, part_id)
        yield Expected(fragment_key(part_id), FileRecord.of(seal(fragment.to_json())), part_id)


def expected_content(files: Mapping[str, bytes]) -> Iterator[Expected]:
    """Yield the blobs of the given files; publishing writes them again if they are damaged."""
    return (Expected(key, FileRecord.of(data)) for key, data in files.items())


def compare(
    place: Blobs, expected: Iterable[Expected], known: Collection[str], progress: Progress | None = None
) -> Comparison:
    """Read every expected blob again.

    Args:
        place: The group's place.
        expected: The expected blobs.
        known: Keys of further expected blobs, which are sealed with their own hash.
        progress: Called with (bytes read, bytes to read) after each blob.
    """
    there, wanted = place.sizes(), list(expected)
    total = sum(there.get(item.key, 0) for item in wanted)
    damages, n_bytes = [], 0
    for item in wanted:
        problem, n_read = _problem(place, item, there.get(item.key))
        n_bytes += n_read
        if problem:
            damages.append(Damage(item.key, problem, item.part_id))
        if progress:
            progress(n_bytes, total)
    unnamed = sorted(set(there) - {item.key for item in wanted} - set(known))
    return Comparison(len(wanted), n_bytes, tuple(sorted(damages, key=lambda damage: damage.key)), tuple(unnamed))


def _problem(place: Blobs, item: Expected, found: int | None) -> tuple[str | None, int]:
    """Return the problem of a blob, or None, and the number of bytes read."""
    expected = item.file
    if found is None:
        return f"expected {expected.n_bytes} bytes, found no file", 0
    if found != expected.n_bytes:
        return f"expected {expected.n_bytes} bytes, found {found}", 0
    try:
        actual = FileRecord.of(place.read(item.key))
    except OSError as error:
        return f"expected {expected.n_bytes} bytes, found that they cannot be read: {error.strerror or error}", 0
    if actual == expected:
        return None, found
    return f"expected sha256 {expected.sha256[:16]}, found {actual.sha256[:16]}", found
