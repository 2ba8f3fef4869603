"""Parts written by several processes are those that one writes; an error loses nothing that was done."""

from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import pytest

from pipelines.ingest import part_writing
from pipelines.ingest.part_writing import LostCases, case_bytes, process_count, write_parts
from storage.base.blobs import LocalBlobs
from storage.base.errors import BadSampleError, StorageError
from storage.slices.config import StoreConfig
from storage.slices.manifest import SliceFragment
from storage.slices.planned import PartPlan, PlannedCase
from storage.slices.publishing import publish
from storage.slices.store_plan import plan_parts
from storage.slices.writer import missing_parts
from storage.sources.case import Case
from storage.sources.npz_folder import NpzFolder
from storage.sources.raw_manifest import scan
from storage.sources.source import Source, SourceConfig
from tests.unit.store_helpers import files_below

CONFIG = StoreConfig(chunk_bytes=256, chunks_per_shard=4, part_shards=1)


def make_source(folder: Path, count: int = 6) -> pd.DataFrame:
    """Write CT images of 20 x 30, a part each, and return their manifest."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    for number in range(count):
        image = rng.integers(0, 256, (20, 30), dtype=np.uint8)
        np.savez_compressed(folder / f"2DBox_CT_{number}.npz", imgs=image, gts=(image > 200).astype(np.uint8))
    return scan(NpzFolder(folder, SourceConfig())).table


def planned(depth: int, height: int, width: int, channels: int = 1, gt_dtype: str = "uint8") -> PlannedCase:
    return PlannedCase("a", "0" * 64, depth > 1, depth, height, width, channels, gt_dtype)


def part_of(*cases: PlannedCase) -> PartPlan:
    return PartPlan("part-00000-0", "CT", "0" * 64, len(cases), {}, {}, cases)


def test_the_bytes_of_a_case() -> None:
    assert case_bytes(planned(3, 10, 20, gt_dtype="uint16")) == 3 * 200 * (1 + 2)
    assert case_bytes(planned(1, 10, 20, channels=3, gt_dtype="")) == 600


def test_small_parts_are_written_here_and_large_ones_as_memory_allows() -> None:
    volume = planned(600, 1024, 1024)
    gigabytes = case_bytes(volume) / 2**30
    parts = [part_of(volume)] * 8
    assert process_count([part_of(planned(1, 512, 512))] * 8, 4, 2**40) == 1
    assert process_count(parts, 4, 2**40) == 4
    assert process_count(parts[:2], 4, 2**40) == 2
    assert process_count(parts, 4, int(3 * 2 * gigabytes * 2**30)) == 3
    assert process_count(parts, 4, 2**20) == 1, "a case too large for the limit is still written, alone"


def test_processes_write_what_one_process_writes(tmp_path: Path) -> None:
    manifest = make_source(tmp_path / "npz")
    source = NpzFolder(tmp_path / "npz", SourceConfig())
    for name, processes in (("one", 1), ("three", 3)):
        root = LocalBlobs(tmp_path / name)
        plan = plan_parts(root, "CT", manifest, CONFIG)
        assert len(plan) == 6
        fragments = list(write_parts(root, plan, source, processes))
        assert {fragment.part_id for fragment in fragments} == {part.part_id for part in plan}
        publish(root, "CT", plan)
    assert files_below(tmp_path / "one") == files_below(tmp_path / "three")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_file_that_went_bad_costs_its_part_alone_and_is_named(tmp_path: Path, processes: int) -> None:
    manifest = make_source(tmp_path / "npz")
    root = LocalBlobs(tmp_path / "stores")
    plan = plan_parts(root, "CT", manifest, CONFIG)
    good = (tmp_path / "npz" / "2DBox_CT_4.npz").read_bytes()
    (tmp_path / "npz" / "2DBox_CT_4.npz").write_bytes(good[:-40])
    source = NpzFolder(tmp_path / "npz", SourceConfig())
    written = list(write_parts(root, plan, source, processes))
    (lost,) = [item for item in written if isinstance(item, LostCases)]
    assert lost.part_id == plan[4].part_id
    assert list(lost.reasons) == ["2DBox_CT_4"]
    assert "undamaged archive" in lost.reasons["2DBox_CT_4"]
    done = [item.part_id for item in written if isinstance(item, SliceFragment)]
    assert len(done) == 5
    missing = {part.part_id for part in missing_parts(root, "CT", plan)}
    assert plan[4].part_id in missing
    assert not missing & set(done)
    (tmp_path / "npz" / "2DBox_CT_4.npz").write_bytes(good)
    list(write_parts(root, missing_parts(root, "CT", plan), source, processes))
    publish(root, "CT", plan)


class _FailingOnce:
    """A source whose first reading fails, as of a disk that was away for a moment."""

    def __init__(self, source: NpzFolder) -> None:
        self._source, self._failed = source, False

    def read(self, case_id: str) -> Case:
        if not self._failed:
            self._failed = True
            raise BadSampleError("unreadable", "a passing fault")
        return self._source.read(case_id)


def test_a_passing_fault_costs_nothing(tmp_path: Path) -> None:
    manifest = make_source(tmp_path / "npz")
    root = LocalBlobs(tmp_path / "stores")
    plan = plan_parts(root, "CT", manifest, CONFIG)
    source = cast("Source", _FailingOnce(NpzFolder(tmp_path / "npz", SourceConfig())))
    assert all(isinstance(item, SliceFragment) for item in write_parts(root, plan, source, 1))


def test_an_error_that_no_case_is_to_blame_for_is_an_error(tmp_path: Path) -> None:
    manifest = make_source(tmp_path / "npz")
    root = LocalBlobs(tmp_path / "stores")
    plan = plan_parts(root, "CT", manifest, CONFIG)
    plan_parts(root, "CT", manifest.iloc[:3], CONFIG)
    with pytest.raises(StorageError, match="found a newer plan without it"):
        list(write_parts(root, plan, NpzFolder(tmp_path / "npz", SourceConfig()), 1))


def test_pool_threshold_is_below_one_default_part() -> None:
    """A store that fills two default parts is worth a pool."""
    config = StoreConfig()
    assert config.part_shards * config.chunks_per_shard * config.chunk_bytes > part_writing.POOL_BYTES
