"""The slice index: label statistics against a plain count, the join with the manifest, the modality index."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from storage.base.atomic import write_parquet
from storage.base.blobs import LocalBlobs
from storage.base.errors import IntegrityError, StorageError
from storage.slices.index import INDEX_COLUMNS, PART_SCHEMA, build_index, modality_index, published_rows
from storage.slices.label_statistics import label_statistics
from storage.sources.case import Case
from tests.unit.store_helpers import build_store, make_case, manifest_of, random_case, varied_cases

ANY_MAP = st.sampled_from(["uint8", "uint16"]).flatmap(
    lambda dtype: arrays(
        dtype,
        st.tuples(st.integers(1, 12), st.integers(1, 12)),
        elements=st.sampled_from([0, 1, 2, 5, 255 if dtype == "uint8" else 65535]),
    )
)


def plain_statistics(mask: npt.NDArray[np.uint16]) -> list[tuple[int, int, list[int]]]:
    found = []
    for label in sorted(set(mask.reshape(-1).tolist()) - {0}):
        ys, xs = np.nonzero(mask == label)
        found.append((label, len(ys), [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]))
    return found


@settings(max_examples=60, deadline=None)
@given(mask=ANY_MAP)
def test_label_statistics_equal_a_plain_count(mask: npt.NDArray[np.uint16]) -> None:
    labels, areas, boxes = label_statistics(mask)
    assert [array.dtype.name for array in (labels, areas, boxes)] == ["int32", "int64", "int32"]
    assert list(zip(labels.tolist(), areas.tolist(), boxes.tolist(), strict=True)) == plain_statistics(mask)


def test_label_statistics_of_hundreds_of_large_ids() -> None:
    ids = 65535 - 7 * np.arange(400, dtype=np.uint16)
    mask = np.zeros((400, 300), np.uint16)
    mask[:, 10:20] = ids[:, None]
    labels, areas, boxes = label_statistics(mask)
    assert labels.tolist() == sorted(ids.tolist())
    assert set(areas.tolist()) == {10}
    assert boxes[0].tolist() == [10, 399, 20, 400]


@pytest.mark.parametrize("mask", [None, np.zeros((3, 4), np.uint8), np.zeros((3, 4), np.uint16)])
def test_label_statistics_without_labels(mask: npt.NDArray[np.uint8] | None) -> None:
    labels, areas, boxes = label_statistics(mask)
    assert labels.shape == areas.shape == (0,)
    assert boxes.shape == (0, 4)


def two_stores(root: Path) -> tuple[dict[str, dict[str, Case]], pd.DataFrame]:
    cases = {
        "US": {"u/b": random_case(20, (6, 6)), "u/a": random_case(21, (6, 7, 3))},
        "CT": varied_cases(),
        "PET": {},
    }
    for modality, members in cases.items():
        build_store(root, members, modality)
    return cases, pd.concat([manifest_of(members, modality) for modality, members in cases.items()])


def test_index_has_one_row_per_slice_in_order_with_what_it_shows(tmp_path: Path) -> None:
    cases, manifest = two_stores(tmp_path)
    index = build_index(LocalBlobs(tmp_path), ["US", "PET", "CT"], manifest)
    assert list(index.columns) == INDEX_COLUMNS
    expected = [
        (name, case_id, z)
        for name in ("CT", "PET", "US")
        for case_id in sorted(cases[name])
        for z in range(cases[name][case_id].depth)
    ]
    assert list(zip(index["modality"], index["case_id"], index["z"], strict=True)) == expected
    for row in index.to_dict("records"):
        case = cases[row["modality"]][row["case_id"]]
        mask = case.slice_mask(row["z"])
        found = [] if mask is None else plain_statistics(np.asarray(mask, np.uint16))
        assert list(row["labels"]) == [label for label, _, _ in found]
        assert list(row["areas"]) == [area for _, area, _ in found]
        assert np.reshape(row["boxes"], (-1, 4)).tolist() == [box for _, _, box in found]
        assert row["fg_px"] == sum(area for _, area, _ in found)
        assert (row["height"], row["width"], row["channels"]) == (case.height, case.width, case.channels)
        assert (row["gt_offset"] == -1) == (row["gt_array"] == "") == (mask is None)
        assert row["content_hash"] == case.content_hash
        assert row["group"] == f"patient-{row['case_id']}"
        assert row["dataset"] == row["case_id"].split("/")[0]
        assert np.isnan(row["spacing_z"]) != case.is_3d


def test_a_changed_map_of_patients_needs_no_new_pixels(tmp_path: Path) -> None:
    _, manifest = two_stores(tmp_path)
    index = build_index(LocalBlobs(tmp_path), ["CT"], manifest.assign(group="all one", dataset="other"))
    assert set(index["group"]) == {"all one"}
    assert set(index["dataset"]) == {"other"}


def test_index_of_nothing_has_the_columns(tmp_path: Path) -> None:
    build_store(tmp_path, {}, "US")
    index = build_index(LocalBlobs(tmp_path), ["US"], manifest_of({}, "US"))
    assert index.empty
    assert list(index.columns) == INDEX_COLUMNS
    assert (index["fg_px"] > 0).sum() == 0
    assert modality_index(index).empty


def test_index_keeps_its_types_through_parquet(tmp_path: Path) -> None:
    _, manifest = two_stores(tmp_path)
    index = build_index(LocalBlobs(tmp_path), ["US", "CT", "PET"], manifest)
    write_parquet(tmp_path / "index.parquet", index)
    again = pd.read_parquet(tmp_path / "index.parquet")
    pd.testing.assert_frame_equal(again, index)
    assert index["img_offset"].dtype == np.int64
    assert index["boxes"].iloc[0].dtype == np.int32


def test_a_store_made_from_another_manifest_is_refused(tmp_path: Path) -> None:
    cases = {"a": random_case(1, (4, 4)), "b": random_case(2, (4, 4))}
    build_store(tmp_path, cases)
    for other in ({"a": cases["a"]}, {**cases, "c": cases["a"]}, {**cases, "b": random_case(3, (4, 4))}):
        with pytest.raises(StorageError, match=r"1 added, removed or changed.*make the slice store of CT again"):
            build_index(LocalBlobs(tmp_path), ["CT"], manifest_of(other))


def test_an_unpublished_store_has_no_index(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="expected a published store"):
        build_index(LocalBlobs(tmp_path), ["CT"], manifest_of({}))


@pytest.mark.parametrize("damage", [b"", b"PAR1 but not really PAR1"])
def test_damaged_rows_are_refused(tmp_path: Path, damage: bytes) -> None:
    build_store(tmp_path, {"a": random_case(1, (4, 4))})
    (path,) = (tmp_path / "CT" / "parts").glob("*.parquet")
    path.write_bytes(damage)
    with pytest.raises(IntegrityError, match=r"delete parts/part-00000.*\.json"):
        published_rows(LocalBlobs(tmp_path), "CT")


def test_published_rows_can_be_read_in_part(tmp_path: Path) -> None:
    build_store(tmp_path, varied_cases())
    rows = published_rows(LocalBlobs(tmp_path), "CT", ["case_id", "z"])
    assert list(rows.columns) == ["case_id", "z"]
    assert list(published_rows(LocalBlobs(tmp_path), "CT").columns) == PART_SCHEMA.names


def test_modality_index_counts(tmp_path: Path) -> None:
    mask = np.zeros((3, 4, 5), np.uint8)
    mask[1, :2, :3] = 2
    mask[1, 3, 4] = 7
    cases = {
        "d/volume": make_case(np.zeros((3, 4, 5), np.uint8), mask, is_3d=True),
        "d/unlabelled": random_case(1, (10, 2, 3), dtype=None),
        "e/wide": make_case(np.zeros((2, 9), np.uint8), np.full((2, 9), 300, np.uint16)),
        "f/unlabelled": random_case(1, (2, 2), dtype=None),
    }
    build_store(tmp_path, cases)
    table = modality_index(build_index(LocalBlobs(tmp_path), ["CT"], manifest_of(cases))).set_index("dataset")
    assert table.loc["d"].drop("modality").to_dict() == {
        "cases": 2,
        "slices": 4,
        "drawable_slices": 1,
        "unlabelled_slices": 1,
        "labels": 2,
        "foreground_share": 7 / 60,
        "min_height": 4,
        "max_height": 10,
        "min_width": 2,
        "max_width": 5,
        "bytes": 3 * 20 * 2 + 60,
        "label_ids": [2, 7],
        "imgs_first": 0,
        "imgs_stop": 4 * 64 - 64 + 20,
    }
    assert table.loc["e", "foreground_share"] == 1
    assert table.loc["e", "bytes"] == 18 * 3
    assert table["foreground_share"].isna().to_dict() == {"d": False, "e": False, "f": True}
