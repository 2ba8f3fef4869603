"""The release reader: rows to pixels, also after slices moved; the example in docs/store_format.md."""

import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medsam_core.base.data import SliceReader
from storage.base.blobs import LocalBlobs
from storage.base.errors import IntegrityError, StorageError
from storage.releases.columns import SliceColumns
from storage.releases.reader import ReleaseReader
from storage.slices.index import build_index
from storage.sources.case import Case
from tests.unit.store_helpers import build_store, manifest_of, random_case, varied_cases
from tests.unit.test_slice_store import changed_cases

DOCUMENT = Path(__file__).parents[2] / "docs" / "store_format.md"


def example(tag: str) -> str:
    """Return the example of that tag in the document on formats."""
    (found,) = [block for block in DOCUMENT.read_text().split("```python ")[1:] if block.startswith(f"{tag}\n")]
    return found.split("\n", 1)[1].split("```")[0]


def table_of(root: Path, cases: dict[str, Case]) -> pd.DataFrame:
    build_store(root, cases)
    return build_index(LocalBlobs(root), ["CT"], manifest_of(cases))


def assert_reads(reader: ReleaseReader, table: pd.DataFrame, cases: dict[str, Case]) -> None:
    assert len(reader) == len(table)
    for row, (case_id, z) in enumerate(zip(table["case_id"], table["z"], strict=True)):
        image, mask = reader.read(row)
        expected = cases[case_id].slice_mask(z)
        np.testing.assert_array_equal(image, cases[case_id].slice_image(z), strict=True)
        if expected is None:
            assert mask is None
        else:
            np.testing.assert_array_equal(mask, expected, strict=True)


def test_rows_are_those_of_the_table_whatever_its_labels(tmp_path: Path) -> None:
    cases = varied_cases()
    table = table_of(tmp_path, cases)
    shuffled = table.sample(frac=1, random_state=3)
    reader: SliceReader = ReleaseReader(LocalBlobs(tmp_path), SliceColumns.of(shuffled))
    assert isinstance(reader, ReleaseReader)
    assert_reads(reader, shuffled, cases)
    assert reader.table[["case_id", "z"]].to_numpy().tolist() == shuffled[["case_id", "z"]].to_numpy().tolist()


def test_modalities_may_be_mixed(tmp_path: Path) -> None:
    cases = {"CT": {"a": random_case(1, (9, 9))}, "US": {"a": random_case(2, (9, 9, 3))}}
    for name, members in cases.items():
        build_store(tmp_path, members, name)
    manifest = pd.concat([manifest_of(members, name) for name, members in cases.items()])
    reader = ReleaseReader(LocalBlobs(tmp_path), SliceColumns.of(build_index(LocalBlobs(tmp_path), cases, manifest)))
    for row, name in enumerate(["CT", "US"]):
        np.testing.assert_array_equal(reader.read(row)[0], cases[name]["a"].imgs)


def test_a_batch_is_what_single_reads_give_in_the_order_asked_for(tmp_path: Path) -> None:
    table = table_of(tmp_path, varied_cases())
    reader = ReleaseReader(LocalBlobs(tmp_path), SliceColumns.of(table))
    rows = np.random.default_rng(5).permutation(len(table)).tolist()
    rows += rows[:2]
    for (image, mask), row in zip(reader.read_batch(rows), rows, strict=True):
        expected_image, expected_mask = reader.read(row)
        np.testing.assert_array_equal(image, expected_image, strict=True)
        np.testing.assert_equal(mask, expected_mask)
    with pytest.raises(IndexError):
        reader.read_batch([0, len(table)])


def test_a_volume_is_stacked(tmp_path: Path) -> None:
    cases = varied_cases()
    table = table_of(tmp_path, cases)
    reader = ReleaseReader(LocalBlobs(tmp_path), SliceColumns.of(table))
    for case_id in ("d/volume", "d/volume_u16"):
        images, masks = reader.read_case(np.flatnonzero(table["case_id"] == case_id).tolist())
        np.testing.assert_array_equal(images, cases[case_id].imgs, strict=True)
        np.testing.assert_array_equal(masks, cases[case_id].gts, strict=True)
    unlabelled = int(np.flatnonzero(table["case_id"] == "d/unlabelled")[0])
    assert reader.read_case([unlabelled])[1] is None


def test_slices_that_moved_are_found_again(tmp_path: Path) -> None:
    before, after = changed_cases()
    table = table_of(tmp_path, before)
    build_store(tmp_path, after)
    kept = table[table["case_id"].isin({name for name in after if after[name] is before.get(name)})]
    moved = set(kept["part_id"]) - set(build_index(LocalBlobs(tmp_path), ["CT"], manifest_of(after))["part_id"])
    assert moved, "some kept slices were meant to move"
    assert_reads(ReleaseReader(LocalBlobs(tmp_path), SliceColumns.of(kept)), kept, before)


def test_content_that_is_gone_is_named(tmp_path: Path) -> None:
    before, after = changed_cases()
    table = table_of(tmp_path, before)
    build_store(tmp_path, after)
    with pytest.raises(IntegrityError, match=r"2 cases changed or removed, such as \['05', '15'\]"):
        ReleaseReader(LocalBlobs(tmp_path), SliceColumns.of(table))


def test_an_unpublished_store_is_refused(tmp_path: Path) -> None:
    table = table_of(tmp_path, {"a": random_case(1, (4, 4))})
    with pytest.raises(StorageError, match="make the slice store of CT"):
        ReleaseReader(LocalBlobs(tmp_path / "elsewhere"), SliceColumns.of(table))


@pytest.mark.parametrize("row", [-1, 1])
def test_rows_out_of_range_are_refused(tmp_path: Path, row: int) -> None:
    reader = ReleaseReader(LocalBlobs(tmp_path), SliceColumns.of(table_of(tmp_path, {"a": random_case(1, (4, 4))})))
    with pytest.raises(IndexError, match="expected 0 to 0"):
        reader.read(row)


def test_an_empty_table_reads_nothing(tmp_path: Path) -> None:
    table = table_of(tmp_path, {"a": random_case(1, (4, 4))})
    assert len(ReleaseReader(LocalBlobs(tmp_path), SliceColumns.of(table.head(0)))) == 0


def test_pickled_copies_read(tmp_path: Path) -> None:
    cases = varied_cases()
    table = table_of(tmp_path, cases)
    reader = ReleaseReader(LocalBlobs(tmp_path), SliceColumns.of(table))
    reader.read(0)
    copy = pickle.loads(pickle.dumps(reader))
    assert_reads(copy, table, cases)


def _checksum(reader: ReleaseReader) -> int:
    return sum(int(reader.read(row)[0].sum()) for row in range(len(reader)))


def test_a_worker_process_reads_after_its_parent_did(tmp_path: Path) -> None:
    reader = ReleaseReader(LocalBlobs(tmp_path), SliceColumns.of(table_of(tmp_path, varied_cases())))
    expected = _checksum(reader)
    with ProcessPoolExecutor(1, mp_context=get_context("forkserver")) as pool:
        assert pool.submit(_checksum, reader).result(timeout=60) == expected


@pytest.mark.parametrize("shape", [(31, 29), (7, 9, 3)])
def test_the_documents_example_reads_a_slice(tmp_path: Path, shape: tuple[int, ...]) -> None:
    case = random_case(1, shape)
    build_store(tmp_path, {"a": case})
    names = {"store": str(tmp_path), "modality": "CT"}
    code = example("read-slice")
    assert len(code.strip().splitlines()) <= 20
    exec(compile(code, str(DOCUMENT), "exec"), names)
    np.testing.assert_array_equal(names["image"], case.imgs)
