"""Whatever is altered in a store is found, and repair gives back the very bytes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.base.blobs import LocalBlobs
from storage.base.errors import IntegrityError, StorageError
from storage.shards.fragments import MANIFEST
from storage.slices.layout import LAYOUT, load_plan
from storage.slices.planned import rows_key
from storage.slices.publishing import publish
from storage.slices.reader import SliceStore
from storage.slices.store_plan import plan_parts
from storage.slices.verification import verify, verify_again, withdraw
from storage.slices.writer import missing_parts, write_part
from tests.unit.store_helpers import (
    CONFIG,
    build_store,
    files_below,
    manifest_of,
    random_case,
    shard_files,
    varied_cases,
)

CASES = varied_cases()


def repair(root: Path) -> None:
    """Do what a repair does: withdraw, write again, publish, verify."""
    place = LocalBlobs(root)
    try:
        withdraw(place, verify(place, "CT"))
    except IntegrityError:
        publish(place, "CT", load_plan(place, "CT"))
        withdraw(place, verify(place, "CT"))
    for part in missing_parts(place, "CT", load_plan(place, "CT")):
        write_part(place, part, CASES.__getitem__)
    assert not verify_again(place, "CT").unnamed


def problems(root: Path) -> list[str]:
    """Return the keys that verification names."""
    try:
        return [damage.key for damage in verify(LocalBlobs(root), "CT").damages]
    except IntegrityError:
        return [MANIFEST]


def test_a_whole_store_has_no_damage(tmp_path: Path) -> None:
    build_store(tmp_path, CASES)
    seen: list[tuple[int, int]] = []
    found = verify(LocalBlobs(tmp_path), "CT", lambda done, total: seen.append((done, total)))
    assert (found.damages, found.unnamed, found.cases) == ((), (), {})
    files = files_below(tmp_path / "CT")
    assert found.n_blobs == len(files)
    sealed = len(files[MANIFEST]) + len(files[LAYOUT])
    assert found.n_bytes == sum(map(len, files.values())) - sealed
    assert seen[-1] == (found.n_bytes, found.n_bytes)


def test_every_damaged_part_is_withdrawn_at_once_and_no_other(tmp_path: Path) -> None:
    build_store(tmp_path, CASES)
    good = files_below(tmp_path)
    place = LocalBlobs(tmp_path)
    plan = [part.part_id for part in load_plan(place, "CT")]
    assert len(plan) > 2
    damaged = plan[:-1]
    for part_id in damaged:
        path = tmp_path / "CT" / rows_key(part_id)
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    found = verify(place, "CT")
    assert {damage.part_id for damage in found.damages} == set(damaged)
    withdraw(place, found)
    assert [part.part_id for part in missing_parts(place, "CT", load_plan(place, "CT"))] == damaged
    repair(tmp_path)
    assert files_below(tmp_path) == good


def test_200_flipped_bytes_are_each_found_and_repaired_to_the_byte(tmp_path: Path) -> None:
    """Of every kind of file in turn: payload and index of shards, array metadata, rows, fragments, plan, manifest."""
    build_store(tmp_path, CASES)
    good = files_below(tmp_path)
    by_kind: dict[str, list[str]] = {}
    for key in good:
        folder, _, ending = key.removeprefix("CT/").rpartition("/")
        kind = "shard" if "/c" in folder else f"{folder[:5]} {ending.rsplit('.')[-1]}"
        by_kind.setdefault(
            "manifest" if key.endswith(MANIFEST) else "plan" if key.endswith(LAYOUT) else kind, []
        ).append(key)
    assert len(by_kind) >= 7
    rng = np.random.default_rng(7)
    for number in range(200):
        kind = sorted(by_kind)[number % len(by_kind)]
        key = by_kind[kind][rng.integers(len(by_kind[kind]))]
        position, bit = rng.integers(len(good[key])), rng.integers(8)
        flipped = bytearray(good[key])
        flipped[position] ^= 1 << int(bit)
        (tmp_path / key).write_bytes(bytes(flipped))
        assert key.removeprefix("CT/") in problems(tmp_path), (key, position, bit)
        if number % 5 == 0:
            repair(tmp_path)
            assert files_below(tmp_path) == good
        (tmp_path / key).write_bytes(good[key])


@pytest.mark.parametrize("suffix", ["imgs/c/1", ".parquet", ".json", "gts_u8/zarr.json", "plan/part-00001", LAYOUT])
def test_a_deleted_file_is_found_and_repaired(tmp_path: Path, suffix: str) -> None:
    build_store(tmp_path, CASES)
    good = files_below(tmp_path)
    key = next(key for key in good if (key.endswith(suffix) or suffix in key) and MANIFEST not in key)
    (tmp_path / key).unlink()
    assert problems(tmp_path) == [key.removeprefix("CT/")]
    repair(tmp_path)
    assert files_below(tmp_path) == good


def test_damage_names_the_cases_to_ingest_again(tmp_path: Path) -> None:
    cases = {f"{number:02d}": random_case(number, (16, 10)) for number in range(12)}
    build_store(tmp_path, cases)
    plan = load_plan(LocalBlobs(tmp_path), "CT")
    assert len(plan) > 1
    shard_files(tmp_path)[plan[1].first_shard["imgs"]].write_bytes(b"torn")
    found = verify(LocalBlobs(tmp_path), "CT")
    assert [damage.part_id for damage in found.damages] == [plan[1].part_id]
    assert found.cases == {plan[1].part_id: tuple(case.case_id for case in plan[1].cases)}
    assert found.table()["cases"].tolist() == [", ".join(case.case_id for case in plan[1].cases)]


def test_one_lost_list_of_cases_hides_no_others(tmp_path: Path) -> None:
    cases = {f"{number:02d}": random_case(number, (16, 10)) for number in range(20)}
    build_store(tmp_path, cases)
    plan = load_plan(LocalBlobs(tmp_path), "CT")
    for part in plan[:2]:
        shard_files(tmp_path)[part.first_shard["imgs"]].write_bytes(b"torn")
    (tmp_path / "CT" / "plan" / f"{plan[0].part_id}.json").unlink()
    found = verify(LocalBlobs(tmp_path), "CT")
    assert found.cases == {plan[0].part_id: (), plan[1].part_id: tuple(case.case_id for case in plan[1].cases)}


def test_what_a_killed_writer_left_is_told_but_is_no_damage(tmp_path: Path) -> None:
    build_store(tmp_path, CASES)
    (tmp_path / "CT" / "imgs" / "c" / "777").write_bytes(b"early")
    found = verify(LocalBlobs(tmp_path), "CT")
    assert (found.damages, found.unnamed) == ((), ("imgs/c/777",))


def test_a_newer_plan_than_the_published_one_is_told(tmp_path: Path) -> None:
    build_store(tmp_path, CASES)
    changed = {**CASES, "d/new": random_case(50, (9, 9))}
    plan_parts(LocalBlobs(tmp_path), "CT", manifest_of(changed), CONFIG)
    (damage,) = verify(LocalBlobs(tmp_path), "CT").damages
    assert damage.key == LAYOUT
    assert "newer" in damage.problem


def test_plan_and_manifest_damaged_together_cannot_be_repaired(tmp_path: Path) -> None:
    build_store(tmp_path, CASES)
    for name in (LAYOUT, MANIFEST):
        path = tmp_path / "CT" / name
        path.write_bytes(path.read_bytes().replace(b"part-00000", b"part-00009", 1))
    with pytest.raises(IntegrityError, match="own sha256"):
        repair(tmp_path)


def test_an_altered_manifest_is_never_read_from(tmp_path: Path) -> None:
    build_store(tmp_path, CASES)
    path = tmp_path / "CT" / MANIFEST
    content: Any = path.read_bytes()
    path.write_bytes(content.replace(b'"n_slices": 1', b'"n_slices": 2', 1))
    with pytest.raises(IntegrityError, match="matches its own sha256"):
        SliceStore(LocalBlobs(tmp_path)).open("CT")


def test_a_store_of_another_format_is_refused_by_its_number(tmp_path: Path) -> None:
    build_store(tmp_path, CASES)
    path = tmp_path / "CT" / MANIFEST
    path.write_text('{"format_version": 1}')
    with pytest.raises(StorageError, match="expected store format 3, found 1; move"):
        verify(LocalBlobs(tmp_path), "CT")
