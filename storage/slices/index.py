"""The slice index, with one row per slice: its place in the store and its labels; and the modality index over it.

What belongs here: the tables, their columns and building them from the parts. Not here: pixels, splits.

The rows of a part are written with the part and depend only on its pixels. Data set, patient and role are joined from
the manifest when the index is built, so that a changed map of patients does not require any pixel to be stored again.
The column of the patient is named `group`, here and in every table, as in the map (`docs/store_format.md`).
"""

from collections.abc import Iterable, Sequence
from typing import Final, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from storage.base.blobs import Blobs
from storage.base.errors import IntegrityError, StorageError
from storage.base.modalities import MODALITIES
from storage.shards.parts import fragment_key
from storage.slices.config import GT_ARRAYS
from storage.slices.label_statistics import label_statistics
from storage.slices.manifest import load_manifest
from storage.slices.planned import rows_key
from storage.sources.case import Case
from storage.sources.manifest_table import with_places

PART_SCHEMA: Final = pa.schema(
    [
        ("case_id", pa.string()),
        ("z", pa.int32()),
        ("modality", pa.string()),
        ("content_hash", pa.string()),
        ("is_3d", pa.bool_()),
        ("depth", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("channels", pa.int32()),
        ("part_id", pa.string()),
        ("img_offset", pa.int64()),
        ("gt_array", pa.string()),
        ("gt_offset", pa.int64()),
        ("labels", pa.list_(pa.int32())),
        ("areas", pa.list_(pa.int64())),
        ("boxes", pa.list_(pa.int32())),
        ("fg_px", pa.int64()),
        ("spacing_z", pa.float64()),
        ("spacing_y", pa.float64()),
        ("spacing_x", pa.float64()),
    ]
)
"""Columns of a part's rows.

`img_offset` counts elements in `imgs`; `gt_offset` counts elements in the array that `gt_array` names. Without labels,
`gt_offset` is -1 and `gt_array` is empty. `labels` are original ids, ascending; `areas` are their pixels; `boxes` holds
four numbers for each label, its tight box `xyxy_px` in the native slice, half-open; `fg_px` is the sum of the areas;
`spacing_*` is in mm, NaN if the file states none.
"""

SliceRow = dict[str, object]
"""A row of a part, by column."""

_NAMES: Final = list(PART_SCHEMA.names)
INDEX_COLUMNS: Final = [*_NAMES[:3], "dataset", "group", *_NAMES[3:], "role"]
"""Columns of the slice index, in order; earlier versions wrote no `role` (`storage.sources.manifest_table`)."""


def slice_row(case: Case, z: int, img_offset: int, gt_offset: int) -> SliceRow:
    """Return the row of one slice, without the columns that name its case and part.

    Args:
        case: The case.
        z: The slice.
        img_offset: First element of its image in `imgs`.
        gt_offset: First element of its labels; -1 if it has none.
    """
    labels, areas, boxes = label_statistics(case.slice_mask(z))
    spacing = case.spacing_zyx or (float("nan"),) * 3
    return {
        "z": z,
        "is_3d": case.is_3d,
        "depth": case.depth,
        "height": case.height,
        "width": case.width,
        "channels": case.channels,
        "img_offset": img_offset,
        "gt_array": "" if case.gts is None else GT_ARRAYS[case.gts.dtype.name],
        "gt_offset": gt_offset,
        "labels": labels,
        "areas": areas,
        "boxes": boxes.reshape(-1),
        "fg_px": int(areas.sum()),
        **dict(zip(("spacing_z", "spacing_y", "spacing_x"), spacing, strict=True)),
    }


def encode_rows(rows: Sequence[SliceRow]) -> bytes:
    """Return a part's rows as parquet."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=PART_SCHEMA), sink, compression="zstd")
    return cast("bytes", sink.getvalue().to_pybytes())


def published_rows(root: Blobs, modality: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the rows of a modality's published parts, sorted by case and z.

    Args:
        root: Place of all stores.
        modality: Canonical modality name.
        columns: The columns of `PART_SCHEMA` to read, with `case_id` and `z` among them; None: all.

    Raises:
        StorageError: If the store is not published.
        IntegrityError: If a part's rows are missing.
    """
    schema = PART_SCHEMA if columns is None else pa.schema([PART_SCHEMA.field(name) for name in columns])
    parts = load_manifest(root, modality).fragments
    tables = [read_rows(root.below(modality), part.part_id, schema) for part in parts]
    rows: pd.DataFrame = pa.concat_tables([schema.empty_table(), *tables]).to_pandas()
    return rows.sort_values(["case_id", "z"], ignore_index=True)


def read_rows(group: Blobs, part_id: str, schema: pa.Schema = PART_SCHEMA) -> pa.Table:
    """Return the rows of one part, in the order they were written.

    Raises:
        IntegrityError: If they are missing or damaged.
    """
    try:
        return pq.read_table(pa.BufferReader(group.read(rows_key(part_id))), columns=schema.names).cast(schema)
    except (FileNotFoundError, OSError, pa.ArrowInvalid) as error:
        raise IntegrityError(
            f"{group.url}/{rows_key(part_id)}: expected the index rows of a part, found a missing or damaged file "
            f"({error}); delete {fragment_key(part_id)} beside them and make the slice store again"
        ) from error


def build_index(root: Blobs, modalities: Iterable[str], manifest: pd.DataFrame) -> pd.DataFrame:
    """Return the slice index of published stores, sorted by modality (canonical order), case and z.

    Args:
        root: Place of all stores.
        modalities: The modalities to include.
        manifest: The raw manifest from which the stores were made; gives the data set and the patient of each case.

    Returns:
        `INDEX_COLUMNS`, one row per slice.

    Raises:
        StorageError: If a store is not published, or holds other cases than the accepted ones of the manifest.
    """
    accepted = manifest[manifest["status"] == "accepted"]
    chosen = sorted(modalities, key=MODALITIES.index)
    tables = [_joined(published_rows(root, name), name, accepted[accepted["modality"] == name]) for name in chosen]
    return pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)


def _joined(rows: pd.DataFrame, modality: str, accepted: pd.DataFrame) -> pd.DataFrame:
    stored = dict(zip(rows["case_id"], rows["content_hash"], strict=True))
    expected = dict(zip(accepted["case_id"], accepted["content_hash"], strict=True))
    differing = sorted({case_id for case_id, _ in stored.items() ^ expected.items()})
    if differing:
        raise StorageError(
            f"slice store {modality}: expected the {len(expected)} cases of the manifest, found {len(differing)} "
            f"added, removed or changed since, such as {differing[:5]}; make the slice store of {modality} again"
        )
    by_case = with_places(accepted).set_index("case_id")
    for name in ("dataset", "group", "role"):
        rows[name] = rows["case_id"].map(by_case[name]).astype(rows["case_id"].dtype)
    return rows[INDEX_COLUMNS]


def _distinct(labels: pd.Series) -> list[int]:
    """Return the distinct numbers in a column of lists, ascending."""
    arrays = [np.asarray(cell, np.int64) for cell in labels]
    return [int(label) for label in np.unique(np.concatenate([*arrays, np.empty(0, np.int64)]))]


def modality_index(index: pd.DataFrame) -> pd.DataFrame:
    """Summarise the slice index by modality and data set.

    Returns:
        modality, dataset, cases, slices, drawable_slices (with at least one label),
        unlabelled_slices (without a label map), labels (summed over slices),
        foreground_share (labelled pixels over all pixels of slices that have a label map; NaN if none has),
        min_height, max_height, min_width, max_width (pixels), bytes (uncompressed images and label maps), label_ids
        (distinct ones, ascending) and imgs_first, imgs_stop: the elements of `imgs` between which its slices lie.
    """
    pixels = index["height"].astype("int64") * index["width"]
    has_gts = index["gt_array"] != ""
    label_bytes = index["gt_array"].map({"gts_u8": 1, "gts_u16": 2, "": 0}).astype("int64")
    work = index.assign(
        label_count=index["labels"].map(len).astype("int64"),
        drawable=index["fg_px"] > 0,
        unlabelled=~has_gts,
        labelled_px=pixels.where(has_gts, 0),
        stored_bytes=pixels * (index["channels"] + label_bytes),
        img_stop=index["img_offset"] + pixels * index["channels"],
    )
    table = work.groupby(["modality", "dataset"]).agg(
        cases=("case_id", "nunique"),
        slices=("z", "size"),
        drawable_slices=("drawable", "sum"),
        unlabelled_slices=("unlabelled", "sum"),
        labels=("label_count", "sum"),
        foreground_share=("fg_px", "sum"),
        labelled_px=("labelled_px", "sum"),
        min_height=("height", "min"),
        max_height=("height", "max"),
        min_width=("width", "min"),
        max_width=("width", "max"),
        bytes=("stored_bytes", "sum"),
        label_ids=("labels", _distinct),
        imgs_first=("img_offset", "min"),
        imgs_stop=("img_stop", "max"),
    )
    share = table["foreground_share"] / table["labelled_px"].where(table["labelled_px"] > 0)
    return table.assign(foreground_share=share).drop(columns="labelled_px").reset_index()
