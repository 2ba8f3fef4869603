"""Columns of slices: the same from memory and from a file, never copied, shared by path."""

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from storage.base.modalities import MODALITIES
from storage.releases.columns import GT_ARRAY_NAMES, SliceColumns


def some_rows() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "case_id": ["b", "b", "a", "c"],
            "z": [0, 1, 0, 0],
            "modality": ["US", "US", "CT", "XRay"],
            "gt_array": ["gts_u8", "gts_u8", "", "gts_u16"],
            "img_offset": [0, 2**40, 5, 7],
            "labels": [[1, 3], [], [], [7]],
            "areas": [[2**33, 5], [], [], [1]],
            "spacing_z": [1.5, 1.5, np.nan, 2.0],
            "split": ["train"] * 4,
        }
    )


@pytest.fixture(params=["memory", "file"])
def columns(request: pytest.FixtureRequest, tmp_path: Path) -> SliceColumns:
    made = SliceColumns.of(some_rows())
    if request.param == "memory":
        return made
    made.save(tmp_path / "train.arrow")
    return SliceColumns.open(tmp_path / "train.arrow")


def test_numbers_names_and_lists_come_back(columns: SliceColumns) -> None:
    assert len(columns) == 4
    assert columns.numbers("img_offset").tolist() == [0, 2**40, 5, 7]
    assert [MODALITIES[code] for code in columns.codes("modality")] == ["US", "US", "CT", "XRay"]
    assert [GT_ARRAY_NAMES[code] for code in columns.codes("gt_array")] == ["gts_u8", "gts_u8", "", "gts_u16"]
    assert columns.names("case_id")[columns.codes("case_id")].tolist() == ["b", "b", "a", "c"]
    offsets, values = columns.lists("areas")
    assert (offsets.tolist(), values.tolist()) == ([0, 2, 2, 2, 3], [2**33, 5, 1])


def test_rows_become_a_table_again(columns: SliceColumns) -> None:
    found = columns.frame()
    expected = some_rows().drop(columns="split")
    for name in expected:
        assert [list(cell) if isinstance(cell, np.ndarray) else cell for cell in found[name].fillna(-1)] == expected[
            name
        ].fillna(-1).tolist()
    chosen = columns.frame(["case_id", "z"], np.array([3, 1]))
    assert chosen.to_numpy().tolist() == [["c", 0], ["b", 1]]


def test_nothing_can_be_written_through_a_view(columns: SliceColumns) -> None:
    for view in (columns.numbers("z"), columns.codes("case_id"), *columns.lists("labels")):
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 1


def test_a_pickled_copy_of_a_file_is_its_path(tmp_path: Path) -> None:
    many = pd.concat([some_rows()] * 5000, ignore_index=True)
    SliceColumns.of(many).save(tmp_path / "train.arrow")
    opened = SliceColumns.open(tmp_path / "train.arrow")
    opened.numbers("z")
    parcel = pickle.dumps(opened)
    assert len(parcel) < 1000
    np.testing.assert_array_equal(pickle.loads(parcel).codes("case_id"), opened.codes("case_id"))


def test_a_pickled_copy_from_memory_is_whole() -> None:
    made = SliceColumns.of(some_rows())
    assert pickle.loads(pickle.dumps(made)).numbers("z").tolist() == [0, 1, 0, 0]


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        SliceColumns.of(some_rows()).save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_no_rows(tmp_path: Path) -> None:
    SliceColumns.of(some_rows().head(0)).save(tmp_path / "train.arrow")
    empty = SliceColumns.open(tmp_path / "train.arrow")
    assert len(empty) == len(empty.numbers("z")) == len(empty.codes("modality")) == len(empty.frame()) == 0
    offsets, values = empty.lists("labels")
    assert (offsets.tolist(), values.dtype) == ([0], np.int32)
