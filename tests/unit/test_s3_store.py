"""Slice stores in an S3 bucket: the same bytes as in a folder, committed without locks."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from storage.base.blobs import Blobs, LocalBlobs, open_blobs
from storage.base.errors import BusyError, IntegrityError, StorageError
from storage.releases.columns import SliceColumns
from storage.releases.reader import ReleaseReader
from storage.shards.fragments import MANIFEST
from storage.shards.parts import fragment_key
from storage.slices.index import build_index
from storage.slices.manifest import load_manifest
from storage.slices.publishing import publish
from storage.slices.reader import SliceStore
from storage.slices.store_plan import plan_parts
from storage.slices.writer import missing_parts, write_part
from storage.sources.case import Case
from tests.unit.s3_server import BUCKET, s3_server
from tests.unit.store_helpers import CONFIG, build_in, files_below, manifest_of, random_case, varied_cases


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    with s3_server():
        yield


@pytest.fixture
def bucket(server: None, tmp_path: Path) -> Blobs:
    return open_blobs(f"s3://{BUCKET}/{tmp_path.name}")


def blobs_of(place: Blobs) -> dict[str, bytes]:
    return {key: place.read(key) for key in place.sizes()}


def assert_reads(place: Blobs, cases: dict[str, Case]) -> None:
    table = build_index(place, ["CT"], manifest_of(cases))
    reader = ReleaseReader(place, SliceColumns.of(table))
    assert len(reader) == sum(case.depth for case in cases.values())
    for row, (case_id, z) in enumerate(zip(table["case_id"], table["z"], strict=True)):
        image, mask = reader.read(row)
        np.testing.assert_array_equal(image, cases[case_id].slice_image(z), strict=True)
        expected = cases[case_id].slice_mask(z)
        assert (mask is None) == (expected is None)
        if mask is not None:
            np.testing.assert_array_equal(mask, expected, strict=True)


def test_a_store_in_a_bucket_holds_the_bytes_of_one_in_a_folder(bucket: Blobs, tmp_path: Path) -> None:
    cases = varied_cases()
    build_in(bucket, cases)
    build_in(LocalBlobs(tmp_path), cases)
    assert blobs_of(bucket) == files_below(tmp_path)
    assert_reads(bucket, cases)


def test_replanning_after_a_change(bucket: Blobs) -> None:
    cases = {f"{number:02d}": random_case(number, (16, 10)) for number in range(12)}
    build_in(bucket, cases)
    changed = {**cases, "05": random_case(99, (12, 12))}
    del changed["11"]
    manifest = build_in(bucket, changed)
    assert_reads(bucket, changed)
    named = {f"CT/imgs/c/{shard.shard}" for shard in manifest.shards() if shard.array == "imgs"}
    assert set(bucket.sizes("CT/imgs/c")) == named, "what the manifest does not name is deleted"


def test_a_writer_that_dies_leaves_nothing_that_counts(bucket: Blobs, tmp_path: Path) -> None:
    cases = varied_cases()
    plan = plan_parts(bucket, "CT", manifest_of(cases), CONFIG)
    last = plan[0].cases[-1].case_id

    def dying(case_id: str) -> Case:
        if case_id == last:
            raise KeyboardInterrupt
        return cases[case_id]

    with pytest.raises(KeyboardInterrupt):
        write_part(bucket, plan[0], dying)
    assert missing_parts(bucket, "CT", plan) == plan
    with pytest.raises(StorageError, match="expected a published store"):
        SliceStore(bucket).open("CT")
    build_in(bucket, cases)
    build_in(LocalBlobs(tmp_path), cases)
    assert blobs_of(bucket) == files_below(tmp_path)


class _Meanwhile:
    """A place where something happens just before the manifest is replaced."""

    def __init__(self, place: Blobs, happens: object) -> None:
        self._place, self._happens = place, happens

    def __getattr__(self, name: str) -> object:
        return getattr(self._place, name)

    def below(self, name: str) -> "_Meanwhile":
        return _Meanwhile(self._place.below(name), self._happens)

    def replace(self, key: str, data: bytes, version: str | None) -> None:
        if key == MANIFEST:
            self._happens()  # type: ignore[operator]
        self._place.replace(key, data, version)


def test_of_two_publishers_the_later_is_refused_and_nothing_is_lost(bucket: Blobs) -> None:
    before = {f"{number:02d}": random_case(number, (16, 10)) for number in range(6)}
    after = {**before, "03": random_case(99, (12, 12))}
    build_in(bucket, before)
    plan = plan_parts(bucket, "CT", manifest_of(before), CONFIG)
    slow = _Meanwhile(bucket, lambda: build_in(bucket, after))
    with pytest.raises(BusyError, match="run again"):
        publish(slow, "CT", plan)  # type: ignore[arg-type]
    assert_reads(bucket, after)


def test_another_writers_equal_part_is_taken_and_a_different_one_is_told(bucket: Blobs) -> None:
    cases = {"a": random_case(1, (16, 10))}
    (part,) = plan_parts(bucket, "CT", manifest_of(cases), CONFIG)
    group = bucket.below("CT")

    def raced(case_id: str) -> Case:
        write_part(bucket, part, cases.__getitem__)
        return cases[case_id]

    assert write_part(bucket, part, raced).n_cases == 1
    group.delete(fragment_key(part.part_id))

    def differently(case_id: str) -> Case:
        group.put(fragment_key(part.part_id), b"{}")
        return cases[case_id]

    with pytest.raises(IntegrityError, match="another writer's with other bytes"):
        write_part(bucket, part, differently)


def test_a_shard_of_another_size_or_gone_is_refused(bucket: Blobs) -> None:
    build_in(bucket, {"a": random_case(1, (16, 16))})
    (shard,) = [record for record in load_manifest(bucket, "CT").shards() if record.array == "imgs"]
    key = f"CT/imgs/c/{shard.shard}"
    bucket.put(key, bucket.read(key)[:-1])
    with pytest.raises(IntegrityError, match="make the slice store of CT"):
        SliceStore(bucket).read("CT", 0, (16, 16), "", -1)
    bucket.delete(key)
    with pytest.raises(IntegrityError, match="found no file"):
        SliceStore(bucket).read("CT", 0, (16, 16), "", -1)
