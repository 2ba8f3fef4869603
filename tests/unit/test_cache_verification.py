"""Whatever is altered in a teacher cache is found, and made again it has the very bytes."""

from pathlib import Path

import numpy as np
import pytest

from storage.answers.cache_locks import reading_access
from storage.answers.cache_verification import verify_cache, withdraw_cache
from storage.answers.cache_writer import missing_parts
from storage.answers.teacher_cache import TeacherCache
from storage.base.blobs import LocalBlobs
from storage.base.errors import BusyError, StorageError
from storage.shards.fragments import MANIFEST
from tests.unit.store_helpers import files_below
from tests.unit.test_teacher_cache import SPEC, build, plan

SHARD = "embeddings/c/3/0/0/0"
"""Of the second part."""


def problems(root: Path) -> list[str]:
    return [damage.key for damage in verify_cache(LocalBlobs(root)).damages]


def repair(root: Path) -> list[str]:
    """Withdraw what is damaged and make the cache again; returns the parts that were made."""
    place = LocalBlobs(root)
    withdrawn = withdraw_cache(place, verify_cache(place))
    with pytest.raises(StorageError, match="expected a published teacher cache"):
        TeacherCache(place)
    made = [part.part_id for part in missing_parts(place, SPEC, plan())]
    assert made == withdrawn
    build(root)
    return made


def flip(path: Path, good: bytes, position: int, bit: int) -> None:
    flipped = bytearray(good)
    flipped[position] ^= 1 << bit
    path.write_bytes(bytes(flipped))


def test_a_whole_cache_has_no_damage_and_every_file_is_looked_at(tmp_path: Path) -> None:
    build(tmp_path)
    seen: list[tuple[int, int]] = []
    found = verify_cache(LocalBlobs(tmp_path), lambda done, total: seen.append((done, total)))
    files = files_below(tmp_path)
    assert (found.damages, found.unnamed, found.n_blobs) == ((), (), len(files))
    assert found.n_bytes == sum(map(len, files.values())) - len(files[MANIFEST])
    assert seen[-1] == (found.n_bytes, found.n_bytes)


def test_200_flipped_bytes_are_each_found_and_made_again_to_the_byte(tmp_path: Path) -> None:
    """Of every kind of file in turn: payload and index of shards, array and group metadata, fragments, both heads."""
    build(tmp_path)
    good = files_below(tmp_path)
    by_kind: dict[str, list[str]] = {}
    for key in good:
        folder, _, name = key.rpartition("/")
        kind = "shard" if "/c/" in key else "fragment" if folder == "parts" else f"{bool(folder)} {name}"
        by_kind.setdefault(kind, []).append(key)
    assert sorted(by_kind) == [
        "False header.json",
        "False manifest.json",
        "False zarr.json",
        "True zarr.json",
        "fragment",
        "shard",
    ]
    rng = np.random.default_rng(11)
    for number in range(200):
        kind = sorted(by_kind)[number % len(by_kind)]
        key = by_kind[kind][rng.integers(len(by_kind[kind]))]
        position, bit = int(rng.integers(len(good[key]))), int(rng.integers(8))
        flip(tmp_path / key, good[key], position, bit)
        assert problems(tmp_path) == [key], (key, position, bit)
        if number % 7 == 0:
            assert len(repair(tmp_path)) == (kind in ("shard", "fragment"))
            assert files_below(tmp_path) == good
        (tmp_path / key).write_bytes(good[key])


@pytest.mark.parametrize("key", [SHARD, "parts/part-00001.json", "embeddings/zarr.json", "zarr.json", "header.json"])
def test_a_deleted_file_is_found_and_made_again(tmp_path: Path, key: str) -> None:
    build(tmp_path)
    good = files_below(tmp_path)
    (tmp_path / key).unlink()
    assert problems(tmp_path) == [key]
    assert repair(tmp_path) == (["part-00001"] if key in (SHARD, "parts/part-00001.json") else [])
    assert files_below(tmp_path) == good


def test_damage_is_found_under_an_altered_manifest_too(tmp_path: Path) -> None:
    build(tmp_path)
    good = files_below(tmp_path)
    flip(tmp_path / SHARD, good[SHARD], 5, 0)
    flip(tmp_path / MANIFEST, good[MANIFEST], 40, 0)
    assert problems(tmp_path) == [SHARD, MANIFEST]
    assert repair(tmp_path) == ["part-00001"]
    assert files_below(tmp_path) == good


def test_a_file_of_the_same_size_from_elsewhere_is_found(tmp_path: Path) -> None:
    """Its chunks carry good checksums of their own."""
    build(tmp_path)
    (tmp_path / "probabilities/c/1/0/0/0").write_bytes((tmp_path / "probabilities/c/0/0/0/0").read_bytes())
    assert problems(tmp_path) == ["probabilities/c/1/0/0/0"]


def test_a_cache_that_is_read_is_not_withdrawn(tmp_path: Path) -> None:
    build(tmp_path)
    (tmp_path / SHARD).write_bytes(b"torn")
    place = LocalBlobs(tmp_path)
    with reading_access(place), pytest.raises(BusyError):
        withdraw_cache(place, verify_cache(place))
    assert (tmp_path / MANIFEST).is_file()


def test_what_a_killed_writer_left_is_told_but_is_no_damage(tmp_path: Path) -> None:
    build(tmp_path)
    (tmp_path / "embeddings/c/99").write_bytes(b"left")
    found = verify_cache(LocalBlobs(tmp_path))
    assert (found.damages, found.unnamed) == ((), ("embeddings/c/99",))


def test_an_unpublished_cache_is_not_verified(tmp_path: Path) -> None:
    build(tmp_path)
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(StorageError, match="expected a published teacher cache"):
        verify_cache(LocalBlobs(tmp_path))
