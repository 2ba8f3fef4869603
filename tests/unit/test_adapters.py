"""A release's rows as the training plan reads them."""

from pathlib import Path

import numpy as np
import pandas as pd

from medsam_core.imaging.prompts import tight_boxes
from pipelines.base.adapters import slice_table
from storage.base.blobs import LocalBlobs
from storage.base.modalities import MODALITIES
from storage.releases.columns import SliceColumns
from storage.slices.index import build_index
from tests.unit.store_helpers import build_store, manifest_of, random_case, varied_cases


def test_rows_of_a_real_index_describe_the_labels_of_every_slice(tmp_path: Path) -> None:
    cases = varied_cases()
    other = {"e/xray": random_case(30, (9, 12), dtype="uint16", largest=300)}
    build_store(tmp_path, cases, "MR")
    build_store(tmp_path, other, "XRay")
    manifest = pd.concat([manifest_of(cases, "MR"), manifest_of(other, "XRay")], ignore_index=True)
    rows = build_index(LocalBlobs(tmp_path), ["MR", "XRay"], manifest)
    table = slice_table(SliceColumns.of(rows))
    assert table.modalities == MODALITIES
    assert len(table) == len(rows) == sum(case.depth for case in cases.values()) + 1
    seen = 0
    for number, row in enumerate(rows.to_dict("records")):
        case = {**cases, **other}[row["case_id"]]
        mask = case.slice_mask(row["z"])
        own = slice(table.label_start[number], table.label_start[number + 1])
        assert MODALITIES[table.modality[number]] == ("XRay" if row["case_id"] == "e/xray" else "MR")
        assert (table.height[number], table.width[number]) == (case.height, case.width)
        labels, boxes = tight_boxes(mask) if mask is not None else (np.empty(0, int), np.empty((0, 4), int))
        np.testing.assert_array_equal(table.label_id[own], labels)
        np.testing.assert_array_equal(table.label_box[own], boxes)
        areas = [] if mask is None else [np.count_nonzero(mask == label) for label in labels]
        np.testing.assert_array_equal(table.label_area[own], areas)
        seen += len(labels)
    assert seen == len(table.label_id) > 400, "one case has several hundred labels"


def test_a_slice_without_labels_keeps_its_row_and_is_never_drawn() -> None:
    rows = pd.DataFrame(
        {
            "modality": ["US", "CT", "US"],
            "height": [4, 5, 6],
            "width": [7, 8, 9],
            "labels": [[2], [], [1, 9]],
            "areas": [[3], [], [4, 5]],
            "boxes": [[0, 0, 1, 3], [], [0, 1, 2, 3, 4, 5, 6, 6]],
            "gt_array": ["gts_u8", "gts_u16", "gts_u8"],
        }
    )
    table = slice_table(SliceColumns.of(rows))
    assert table.label_start.tolist() == [0, 1, 1, 3]
    assert table.drawable().tolist() == [0, 2]
    assert table.label_box.tolist() == [[0, 0, 1, 3], [0, 1, 2, 3], [4, 5, 6, 6]]
    assert table.modality.tolist() == [MODALITIES.index(name) for name in ("US", "CT", "US")]
    assert table.unlabelled is None, "a slice whose ground truth is blank has labels: none of them"
    marked = slice_table(SliceColumns.of(rows.assign(gt_array=["gts_u8", "", "gts_u8"]))).unlabelled
    assert marked is not None
    assert marked.tolist() == [False, True, False]


def test_columns_have_the_types_that_the_table_promises() -> None:
    rows = pd.DataFrame(
        {
            "modality": ["CT"],
            "height": [4],
            "width": [7],
            "labels": [[2]],
            "areas": [[3]],
            "boxes": [[0, 0, 1, 3]],
            "gt_array": ["gts_u8"],
        }
    )
    for table in (slice_table(SliceColumns.of(rows)), slice_table(SliceColumns.of(rows.iloc[:0]))):
        types = {
            name: getattr(table, name).dtype.name for name in vars(table) if name not in ("modalities", "unlabelled")
        }
        assert types == {
            "modality": "int8",
            "height": "int32",
            "width": "int32",
            "label_start": "int64",
            "label_id": "int32",
            "label_area": "int64",
            "label_box": "int32",
        }
        assert table.label_box.shape[1:] == (4,)


def test_an_empty_split_is_an_empty_table() -> None:
    columns = ["modality", "height", "width", "labels", "areas", "boxes", "gt_array"]
    table = slice_table(SliceColumns.of(pd.DataFrame({name: [] for name in columns})))
    assert len(table) == 0
    assert table.label_start.tolist() == [0]
    assert table.drawable().size == 0
