"""Parts written by several processes are those that one writes; an error loses nothing that was done."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipelines.ingest import part_writing
from pipelines.ingest.part_writing import case_bytes, process_count, write_parts
from storage.base.blobs import LocalBlobs
from storage.base.errors import BadSampleError
from storage.slices.config import StoreConfig
from storage.slices.planned import PartPlan, PlannedCase
from storage.slices.publishing import publish
from storage.slices.store_plan import plan_parts
from storage.slices.writer import missing_parts
from storage.sources.npz_folder import NpzFolder
from storage.sources.raw_manifest import scan
from storage.sources.source import SourceConfig
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
    load = NpzFolder(tmp_path / "npz", SourceConfig()).read
    for name, processes in (("one", 1), ("three", 3)):
        root = LocalBlobs(tmp_path / name)
        plan = plan_parts(root, "CT", manifest, CONFIG)
        assert len(plan) == 6
        fragments = list(write_parts(root, plan, load, processes))
        assert {fragment.part_id for fragment in fragments} == {part.part_id for part in plan}
        publish(root, "CT", plan)
    assert files_below(tmp_path / "one") == files_below(tmp_path / "three")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_file_that_went_bad_stops_the_step_and_loses_no_part(tmp_path: Path, processes: int) -> None:
    manifest = make_source(tmp_path / "npz")
    root = LocalBlobs(tmp_path / "stores")
    plan = plan_parts(root, "CT", manifest, CONFIG)
    good = (tmp_path / "npz" / "2DBox_CT_4.npz").read_bytes()
    (tmp_path / "npz" / "2DBox_CT_4.npz").write_bytes(good[:-40])
    load = NpzFolder(tmp_path / "npz", SourceConfig()).read
    done = []
    with pytest.raises(BadSampleError, match="undamaged archive"):
        done += [fragment.part_id for fragment in write_parts(root, plan, load, processes)]
    missing = {part.part_id for part in missing_parts(root, "CT", plan)}
    assert plan[4].part_id in missing
    assert not missing & set(done)
    (tmp_path / "npz" / "2DBox_CT_4.npz").write_bytes(good)
    list(write_parts(root, missing_parts(root, "CT", plan), load, processes))
    publish(root, "CT", plan)


def test_pool_threshold_is_below_one_default_part() -> None:
    """A store that fills two default parts is worth a pool."""
    config = StoreConfig()
    assert config.part_shards * config.chunks_per_shard * config.chunk_bytes > part_writing.POOL_BYTES
