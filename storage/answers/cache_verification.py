"""Verifying a teacher cache: reading all of it again to find damage, and withdrawing damaged parts.

What belongs here: the expected files of a cache, withdrawing damaged parts. Not here: comparing bytes
(`storage.shards.verification`); writing parts again (`storage.answers.cache_writer`), which needs the teacher.
"""

from storage.answers.cache_locks import exclusive_access
from storage.answers.cache_manifest import HEADER, CacheFragment, cache_parts, load_cache_manifest, read_sealed
from storage.answers.cache_plan import CacheSpec
from storage.answers.cache_writer import described
from storage.base.blobs import Blobs
from storage.base.errors import IntegrityError
from storage.shards.fragments import MANIFEST
from storage.shards.parts import withdraw_parts
from storage.shards.verification import (
    Comparison,
    Damage,
    Progress,
    compare,
    expected_content,
    expected_of_parts,
)

_PART_FOLDER = "parts"


def verify_cache(root: Blobs, progress: Progress | None = None) -> Comparison:
    """Compare every blob of a published cache with its recorded size and hash.

    If the manifest is altered, the records are taken from the fragments of the parts. If the header is altered, the
    layout of the arrays is unknown, and nothing else is compared.

    Args:
        root: Place of the cache.
        progress: Called with (bytes read, bytes to read) after each blob.

    Raises:
        StorageError: If the cache is not published, or another version of this project wrote it.
    """
    damages: list[Damage] = []
    fragments: tuple[CacheFragment, ...] | None = None
    try:
        fragments = load_cache_manifest(root).fragments
    except IntegrityError as error:
        damages.append(Damage(MANIFEST, str(error), ""))
    try:
        spec = CacheSpec.from_header(read_sealed(root, HEADER))
    except (FileNotFoundError, IntegrityError) as error:
        problem = f"{error}; the other files can be compared when the header is written again"
        return Comparison(len(damages) + 1, 0, (Damage(HEADER, problem, ""), *damages), ())
    found = _intact_fragments(root, spec) if fragments is None else fragments
    expected = [*expected_of_parts(found, spec.layouts()), *expected_content(described(spec))]
    compared = compare(root, expected, (MANIFEST,), progress)
    return Comparison(
        n_blobs=compared.n_blobs + 1,
        n_bytes=compared.n_bytes,
        damages=tuple(sorted([*damages, *compared.damages], key=lambda damage: damage.key)),
        unnamed=compared.unnamed,
    )


def _intact_fragments(root: Blobs, spec: CacheSpec) -> tuple[CacheFragment, ...]:
    """Return the unaltered fragments; a part without one counts as missing and is written again."""
    names = (key.rpartition("/")[2].removesuffix(".json") for key in root.sizes(_PART_FOLDER))
    found = (cache_parts(root, spec).fragment(name) for name in names)
    return tuple(fragment for fragment in found if fragment is not None)


def withdraw_cache(root: Blobs, found: Comparison) -> list[str]:
    """Unpublish a damaged cache and delete the fragments of its damaged parts; return the ids of these parts.

    Making the cache again writes exactly these parts, and publishes the cache.

    Raises:
        BusyError: If another process reads or writes the cache.
    """
    part_ids = sorted({damage.part_id for damage in found.damages if damage.part_id})
    with exclusive_access(root):
        root.delete(MANIFEST)
        withdraw_parts(root, part_ids)
    return part_ids
