"""Slice stores: round trips, standard zarr, killed writers, damage, replanning, locks."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from storage.base.atomic import read_json
from storage.base.blobs import LOCK, LocalBlobs
from storage.base.errors import BusyError, IntegrityError, StorageError
from storage.base.locks import exclusive_lock, shared_lock
from storage.slices.config import StoreConfig
from storage.slices.index import published_rows
from storage.slices.layout import load_layout, load_plan
from storage.slices.manifest import load_manifest
from storage.slices.planned import PartPlan, plan_key, shards_needed
from storage.slices.publishing import publish
from storage.slices.reader import SliceStore
from storage.slices.store_plan import plan_parts
from storage.slices.verification import verify
from storage.slices.writer import missing_parts, write_part
from storage.sources.case import Case
from tests.unit.store_helpers import (
    CONFIG,
    build_store,
    files_below,
    make_case,
    manifest_of,
    random_case,
    shard_files,
    varied_cases,
)


def read_all(store: SliceStore, root: Path, modality: str = "CT") -> dict[tuple[str, int], tuple[Any, Any]]:
    found = {}
    for row in published_rows(LocalBlobs(root), modality).to_dict("records"):
        shape = (row["height"], row["width"]) + ((3,) if row["channels"] == 3 else ())
        slices = store.read(modality, row["img_offset"], shape, row["gt_array"], row["gt_offset"])
        found[str(row["case_id"]), int(row["z"])] = slices
    return found


def assert_holds(root: Path, cases: dict[str, Case]) -> None:
    found = read_all(SliceStore(LocalBlobs(root)), root)
    assert set(found) == {(case_id, z) for case_id, case in cases.items() for z in range(case.depth)}
    for (case_id, z), (image, mask) in found.items():
        expected = cases[case_id].slice_mask(z)
        np.testing.assert_array_equal(image, cases[case_id].slice_image(z), strict=True)
        if expected is None:
            assert mask is None
        else:
            np.testing.assert_array_equal(mask, expected, strict=True)


def test_round_trip_of_every_shape(tmp_path: Path) -> None:
    cases = varied_cases()
    manifest = build_store(tmp_path, cases)
    assert len(manifest.fragments) > 1, "the cases were meant to take several parts"
    assert_holds(tmp_path, cases)


def test_round_trip_with_default_sizes(tmp_path: Path) -> None:
    cases = {"a": random_case(1, (700, 900, 3)), "b": random_case(2, (4, 30, 29), is_3d=True)}
    build_store(tmp_path, cases, config=StoreConfig())
    assert_holds(tmp_path, cases)


def test_non_contiguous_arrays_are_stored_as_they_read(tmp_path: Path) -> None:
    whole = random_case(1, (24, 36))
    assert whole.gts is not None
    cases = {"t": make_case(whole.imgs.T, whole.gts.T)}
    build_store(tmp_path, cases)
    assert_holds(tmp_path, cases)


def test_zarr_reads_the_same_bytes(tmp_path: Path) -> None:
    cases = varied_cases()
    build_store(tmp_path, cases)
    group = zarr.open_group(tmp_path / "CT", mode="r", zarr_format=3)
    assert sorted(name for name, _ in group.arrays()) == ["gts_u16", "gts_u8", "imgs"]
    for row in published_rows(LocalBlobs(tmp_path), "CT").to_dict("records"):
        case, z = cases[row["case_id"]], row["z"]
        image = case.slice_image(z)
        start = row["img_offset"]
        assert np.asarray(group["imgs"][start : start + image.size]).tobytes() == image.tobytes()
        mask = case.slice_mask(z)
        if mask is not None:
            start = row["gt_offset"]
            assert np.asarray(group[row["gt_array"]][start : start + mask.size]).tobytes() == mask.tobytes()


def test_metadata_states_codecs_and_checksums(tmp_path: Path) -> None:
    build_store(tmp_path, varied_cases())
    metadata = read_json(tmp_path / "CT" / "gts_u16" / "zarr.json")
    (sharding,) = metadata["codecs"]
    assert metadata["zarr_format"] == 3
    assert metadata["data_type"] == "uint16"
    assert metadata["chunk_grid"]["configuration"]["chunk_shape"] == [128]
    assert sharding["name"] == "sharding_indexed"
    assert sharding["configuration"]["chunk_shape"] == [32]
    assert [codec["name"] for codec in sharding["configuration"]["codecs"]] == ["bytes", "zstd", "crc32c"]
    assert [codec["name"] for codec in sharding["configuration"]["index_codecs"]] == ["bytes", "crc32c"]


def test_empty_slices_are_stored_like_others(tmp_path: Path) -> None:
    cases = {"v": make_case(np.zeros((4, 16, 16), np.uint8), np.zeros((4, 16, 16), np.uint8), is_3d=True)}
    build_store(tmp_path, cases)
    assert_holds(tmp_path, cases)
    assert len(shard_files(tmp_path)) == 4


def test_a_store_without_cases_is_published_and_empty(tmp_path: Path) -> None:
    manifest = build_store(tmp_path, {}, "US")
    assert (manifest.fragments, list(manifest.shards())) == ((), [])
    assert published_rows(LocalBlobs(tmp_path), "US").empty
    assert zarr.open_group(tmp_path / "US", mode="r")["imgs"].shape == (0,)
    assert load_manifest(LocalBlobs(tmp_path), "US") == manifest


def test_slices_start_on_chunks_parts_on_shards_and_volumes_are_contiguous(tmp_path: Path) -> None:
    manifest = build_store(tmp_path, varied_cases())
    rows = published_rows(LocalBlobs(tmp_path), "CT")
    assert (rows["img_offset"] % 64 == 0).all()
    assert (rows.loc[rows["gt_array"] == "gts_u16", "gt_offset"] % 32 == 0).all()
    volume = rows[rows["case_id"] == "d/volume"]
    assert np.diff(volume["img_offset"]).tolist() == [128] * 4
    owners = [(shard.array, shard.shard) for shard in manifest.shards()]
    assert len(owners) == len(set(owners)), "two parts share a shard"
    firsts = rows.groupby("part_id")["img_offset"].min()
    assert (firsts % 256 == 0).all()


def test_parts_keep_to_their_shards_unless_one_case_needs_more(tmp_path: Path) -> None:
    cases = {f"{number:02d}": random_case(number, (16, 10)) for number in range(9)}
    cases["05"] = random_case(5, (40, 40))
    plan = plan_parts(LocalBlobs(tmp_path), "CT", manifest_of(cases), CONFIG)
    for part in plan:
        assert part.n_shards == shards_needed(CONFIG, part.cases)
        assert part.n_shards["imgs"] <= CONFIG.part_shards or len(part.cases) == 1
    assert [case.case_id for part in plan for case in part.cases] == sorted(cases)


def test_plan_is_read_back_whole_or_by_part(tmp_path: Path) -> None:
    place = LocalBlobs(tmp_path)
    plan = plan_parts(place, "CT", manifest_of(varied_cases()), CONFIG)
    assert len(plan) > 1
    assert load_plan(place, "CT") == plan
    assert load_plan(place, "CT", {plan[1].part_id}) == [plan[1]]
    assert load_layout(place, "CT").parts == [part.entry for part in plan]


@pytest.mark.parametrize("harm", [lambda path: path.unlink(), lambda path: path.write_bytes(b"{}")])
def test_a_part_without_its_list_of_cases_is_planned_anew(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    cases, place = varied_cases(), LocalBlobs(tmp_path)
    build_store(tmp_path, cases)
    plan = load_plan(place, "CT")
    harm(tmp_path / "CT" / plan_key(plan[1].part_id))
    with pytest.raises(StorageError, match=plan[1].part_id):
        load_plan(place, "CT")
    assert load_plan(place, "CT", {plan[0].part_id}) == [plan[0]]
    build_store(tmp_path, cases)
    assert_holds(tmp_path, cases)
    assert not verify(place, "CT").damages


def test_two_fresh_builds_are_physically_equal(tmp_path: Path) -> None:
    cases = varied_cases()
    build_store(tmp_path / "one", cases)
    shuffled = dict(reversed(cases.items()))
    plan = plan_parts(LocalBlobs(tmp_path / "two"), "CT", manifest_of(shuffled), CONFIG)
    for part in reversed(plan):
        write_part(LocalBlobs(tmp_path / "two"), part, shuffled.__getitem__)
    publish(LocalBlobs(tmp_path / "two"), "CT", plan)
    assert files_below(tmp_path / "one") == files_below(tmp_path / "two")
    one, two = (load_manifest(LocalBlobs(tmp_path / name), "CT") for name in ("one", "two"))
    assert one.fingerprint == two.fingerprint


def _lose_fragment(root: Path, part: PartPlan) -> None:
    (root / "CT" / "parts" / f"{part.part_id}.json").unlink()


def _lose_rows(root: Path, part: PartPlan) -> None:
    (root / "CT" / "parts" / f"{part.part_id}.parquet").unlink()


def _lose_shard(root: Path, part: PartPlan) -> None:
    (root / "CT" / "imgs" / "c" / str(part.first_shard["imgs"])).unlink()


def _tear_shard(root: Path, part: PartPlan) -> None:
    path = root / "CT" / "imgs" / "c" / str(part.first_shard["imgs"])
    path.write_bytes(path.read_bytes()[:-5])


def _leave_partial(root: Path, part: PartPlan) -> None:
    _lose_fragment(root, part)
    shard = root / "CT" / "imgs" / "c" / str(part.first_shard["imgs"])
    shard.rename(shard.with_name(f"{shard.name}.4242.partial"))


@pytest.mark.parametrize("harm", [_lose_fragment, _lose_rows, _lose_shard, _tear_shard, _leave_partial])
def test_a_killed_writers_part_is_named_and_rewritten_to_identical_bytes(
    tmp_path: Path, harm: Callable[[Path, PartPlan], None]
) -> None:
    cases = varied_cases()
    build_store(tmp_path, cases)
    before = files_below(tmp_path)
    plan = load_plan(LocalBlobs(tmp_path), "CT")
    harm(tmp_path, plan[1])
    assert missing_parts(LocalBlobs(tmp_path), "CT", plan) == [plan[1]]
    with pytest.raises(IntegrityError, match=plan[1].part_id):
        publish(LocalBlobs(tmp_path), "CT", plan)
    write_part(LocalBlobs(tmp_path), plan[1], cases.__getitem__)
    publish(LocalBlobs(tmp_path), "CT", plan)
    assert files_below(tmp_path) == before


def test_a_writer_that_dies_in_the_middle_leaves_a_missing_part(tmp_path: Path) -> None:
    cases = varied_cases()
    build_store(tmp_path / "whole", cases)
    plan = plan_parts(LocalBlobs(tmp_path / "cut"), "CT", manifest_of(cases), CONFIG)
    last = plan[0].cases[-1].case_id

    def dying(case_id: str) -> Case:
        if case_id == last:
            raise KeyboardInterrupt
        return cases[case_id]

    with pytest.raises(KeyboardInterrupt):
        write_part(LocalBlobs(tmp_path / "cut"), plan[0], dying)
    assert missing_parts(LocalBlobs(tmp_path / "cut"), "CT", plan) == plan
    for part in plan:
        write_part(LocalBlobs(tmp_path / "cut"), part, cases.__getitem__)
    publish(LocalBlobs(tmp_path / "cut"), "CT", plan)
    assert files_below(tmp_path / "cut") == files_below(tmp_path / "whole")


def test_a_whole_part_is_not_written_again(tmp_path: Path) -> None:
    build_store(tmp_path, varied_cases())

    def never(case_id: str) -> Case:
        raise AssertionError(case_id)

    for part in load_plan(LocalBlobs(tmp_path), "CT"):
        assert write_part(LocalBlobs(tmp_path), part, never).part_id == part.part_id


def test_every_flipped_byte_is_caught(tmp_path: Path) -> None:
    case = random_case(1, (16, 16))
    build_store(tmp_path, {"a": case})
    (path,) = shard_files(tmp_path)
    good = path.read_bytes()
    for position in range(0, len(good), 7):
        path.write_bytes(good[:position] + bytes([good[position] ^ 16]) + good[position + 1 :])
        with pytest.raises(IntegrityError, match=r"checksum.*delete parts/part-00000.*make the slice store of CT"):
            SliceStore(LocalBlobs(tmp_path)).read("CT", 0, (16, 16), "", -1)
    path.write_bytes(good)
    np.testing.assert_array_equal(SliceStore(LocalBlobs(tmp_path)).read("CT", 0, (16, 16), "", -1)[0], case.imgs)


def test_a_flipped_byte_never_gives_wrong_pixels_where_part_of_a_shard_is_read(tmp_path: Path) -> None:
    case = random_case(1, (3, 8, 8), is_3d=True)
    build_store(tmp_path, {"a": case})
    (path,) = shard_files(tmp_path)
    good = path.read_bytes()
    caught = 0
    for position in range(0, len(good), 5):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        try:
            image, _ = SliceStore(LocalBlobs(tmp_path)).read("CT", 64, (8, 8), "", -1)
        except IntegrityError:
            caught += 1
        else:
            np.testing.assert_array_equal(image, case.imgs[1])
    assert caught > (64 + 68) // 5, "the chunk that is read and the index were meant to be covered"


@pytest.mark.parametrize("harm", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_missing_and_torn_shards_are_refused(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    build_store(tmp_path, {"a": random_case(1, (31, 29))})
    harm(shard_files(tmp_path)[2])
    with pytest.raises(IntegrityError, match=r"found no file|expected \d+ bytes, found"):
        SliceStore(LocalBlobs(tmp_path)).read("CT", 0, (31, 29), "", -1)


def test_a_shard_the_manifest_does_not_name_is_refused(tmp_path: Path) -> None:
    build_store(tmp_path, {"a": random_case(1, (16, 16))})
    first, extra = tmp_path / "CT" / "imgs" / "c" / "0", tmp_path / "CT" / "imgs" / "c" / "1"
    extra.write_bytes(first.read_bytes())
    with pytest.raises(IntegrityError, match="names no shard 1"):
        SliceStore(LocalBlobs(tmp_path)).read("CT", 256, (16, 16), "", -1)


def test_an_unpublished_store_is_refused(tmp_path: Path) -> None:
    plan = plan_parts(LocalBlobs(tmp_path), "CT", manifest_of({"a": random_case(1, (4, 4))}), CONFIG)
    write_part(LocalBlobs(tmp_path), plan[0], lambda _: random_case(1, (4, 4)))
    with pytest.raises(StorageError, match="make the slice store of CT"):
        SliceStore(LocalBlobs(tmp_path)).read("CT", 0, (4, 4), "", -1)


def changed_cases() -> tuple[dict[str, Case], dict[str, Case]]:
    before = {f"{number:02d}": random_case(number, (16, 10)) for number in range(16)}
    after = {**before, "05": random_case(99, (12, 12)), "20": random_case(20, (9, 9), dtype="uint16")}
    del after["15"]
    return before, after


def test_replanning_keeps_every_part_without_a_change(tmp_path: Path) -> None:
    before, after = changed_cases()
    build_store(tmp_path, before)
    old = load_plan(LocalBlobs(tmp_path), "CT")
    files = files_below(tmp_path / "CT")
    touched = {part.part_id for part in old if {"05", "15"} & {case.case_id for case in part.cases}}
    plan = plan_parts(LocalBlobs(tmp_path), "CT", manifest_of(after), CONFIG)
    kept = [part for part in old if part.part_id not in touched]
    assert len(kept) >= 2
    assert plan[: len(kept)] == kept
    renewed = plan[len(kept) :]
    assert missing_parts(LocalBlobs(tmp_path), "CT", plan) == renewed
    last = max(part.first_shard["imgs"] + part.n_shards["imgs"] for part in old)
    assert min(part.first_shard["imgs"] for part in renewed) == last
    for part in renewed:
        write_part(LocalBlobs(tmp_path), part, after.__getitem__)
    publish(LocalBlobs(tmp_path), "CT", plan)
    assert_holds(tmp_path, after)
    now = files_below(tmp_path / "CT")
    for part in kept:
        for name in (f"parts/{part.part_id}.json", f"imgs/c/{part.first_shard['imgs']}"):
            assert now[name] == files[name]


def test_publishing_removes_what_the_manifest_does_not_name(tmp_path: Path) -> None:
    before, after = changed_cases()
    build_store(tmp_path, before)
    (tmp_path / "CT" / "imgs" / "c" / "0.77.partial").write_bytes(b"left")
    (tmp_path / "CT" / "parts" / "part-00000-00000000.json").write_text("{}")
    manifest = build_store(tmp_path, after)
    named = {str(shard.shard) for shard in manifest.shards() if shard.array == "imgs"}
    assert {path.name for path in shard_files(tmp_path)} == named
    parts = {f"{part.part_id}.{suffix}" for part in manifest.fragments for suffix in ("json", "parquet")}
    assert {path.name for path in (tmp_path / "CT" / "parts").iterdir()} == parts
    plans = {f"{part.part_id}.json" for part in manifest.fragments}
    assert {path.name for path in (tmp_path / "CT" / "plan").iterdir()} == plans


def test_publishing_leaves_what_a_newer_plan_may_be_writing(tmp_path: Path) -> None:
    before, after = changed_cases()
    plan = plan_parts(LocalBlobs(tmp_path), "CT", manifest_of(before), CONFIG)
    newer = plan[-1].first_shard["imgs"] + plan[-1].n_shards["imgs"]
    early = [tmp_path / "CT" / "imgs" / "c" / str(newer), tmp_path / "CT" / "parts" / f"part-{len(plan):05d}-0.json"]
    for path in early:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"{}")
    build_store(tmp_path, before)
    assert all(path.is_file() for path in early)
    build_store(tmp_path, after)
    assert not early[1].exists(), "its number has been given out since"


def test_changing_back_does_not_give_an_old_place_its_name_back(tmp_path: Path) -> None:
    before, _ = changed_cases()
    first = build_store(tmp_path, before)
    build_store(tmp_path, {**before, "15": random_case(99, (12, 12))})
    third = build_store(tmp_path, before)
    assert_holds(tmp_path, before)
    contents = [[part.fingerprint for part in manifest.fragments] for manifest in (first, third)]
    assert contents[0] == contents[1], "the content was meant to be the same, part by part"
    assert first.fragments[-1].part_id != third.fragments[-1].part_id
    assert first.fingerprint != third.fingerprint


def test_readers_of_the_manifest_before_still_read_kept_parts(tmp_path: Path) -> None:
    before, after = changed_cases()
    build_store(tmp_path, before)
    store = SliceStore(LocalBlobs(tmp_path))
    expected, _ = store.read("CT", 0, (16, 10), "gts_u8", 0)
    build_store(tmp_path, after)
    np.testing.assert_array_equal(store.read("CT", 0, (16, 10), "gts_u8", 0)[0], expected)


def test_a_new_encoding_replans_everything_and_part_size_nothing(tmp_path: Path) -> None:
    cases = varied_cases()
    build_store(tmp_path, cases)
    plan = load_plan(LocalBlobs(tmp_path), "CT")
    assert plan_parts(LocalBlobs(tmp_path), "CT", manifest_of(cases), replace(CONFIG, part_shards=1)) == plan
    build_store(tmp_path, cases, config=replace(CONFIG, chunk_bytes=32))
    assert_holds(tmp_path, cases)
    assert not {part.part_id for part in load_plan(LocalBlobs(tmp_path), "CT")} & {part.part_id for part in plan}


def test_a_case_that_changed_after_the_scan_is_refused(tmp_path: Path) -> None:
    (part,) = plan_parts(LocalBlobs(tmp_path), "CT", manifest_of({"a": random_case(1, (4, 4))}), CONFIG)
    with pytest.raises(StorageError, match="changed since the manifest was made: run raw_manifest again"):
        write_part(LocalBlobs(tmp_path), part, lambda _: random_case(2, (4, 4)))
    assert missing_parts(LocalBlobs(tmp_path), "CT", [part]) == [part]


def test_a_replaced_plan_is_neither_written_nor_published(tmp_path: Path) -> None:
    before, after = changed_cases()
    old = plan_parts(LocalBlobs(tmp_path), "CT", manifest_of(before), CONFIG)
    plan_parts(LocalBlobs(tmp_path), "CT", manifest_of(after), CONFIG)
    stale = next(part for part in old if "05" in {case.case_id for case in part.cases})
    with pytest.raises(StorageError, match="newer plan"):
        write_part(LocalBlobs(tmp_path), stale, before.__getitem__)
    with pytest.raises(StorageError, match="newer plan"):
        publish(LocalBlobs(tmp_path), "CT", old)


def test_locks(tmp_path: Path) -> None:
    cases = {"a": random_case(1, (4, 4))}
    plan = plan_parts(LocalBlobs(tmp_path), "CT", manifest_of(cases), CONFIG)
    lock = tmp_path / "CT" / LOCK
    with exclusive_lock(lock, what="test"):
        for blocked in (
            lambda: plan_parts(LocalBlobs(tmp_path), "CT", manifest_of(cases), CONFIG),
            lambda: write_part(LocalBlobs(tmp_path), plan[0], cases.__getitem__),
            lambda: publish(LocalBlobs(tmp_path), "CT", plan),
        ):
            with pytest.raises(BusyError, match="process"):
                blocked()
    with shared_lock(lock, what="test"):
        write_part(LocalBlobs(tmp_path), plan[0], cases.__getitem__)
        with pytest.raises(BusyError):
            publish(LocalBlobs(tmp_path), "CT", plan)
    publish(LocalBlobs(tmp_path), "CT", plan)


def test_a_store_pickles_after_use(tmp_path: Path) -> None:
    case = random_case(1, (16, 16))
    build_store(tmp_path, {"a": case})
    store = SliceStore(LocalBlobs(tmp_path))
    store.read("CT", 0, (16, 16), "", -1)
    copy = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(copy.read("CT", 0, (16, 16), "", -1)[0], case.imgs)


@pytest.mark.parametrize(
    "change",
    [
        {"chunk_bytes": 3},
        {"chunk_bytes": 0},
        {"chunks_per_shard": 0},
        {"part_shards": 0},
        {"level": 0},
        {"level": 10, "codec": "lz4"},
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(CONFIG, **change)


def test_a_case_id_twice_is_refused(tmp_path: Path) -> None:
    rows = manifest_of({"a": random_case(1, (4, 4))})
    with pytest.raises(StorageError, match="every case id once"):
        plan_parts(LocalBlobs(tmp_path), "CT", rows.loc[[0, 0]], CONFIG)
