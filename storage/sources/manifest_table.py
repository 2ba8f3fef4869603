"""The table of the raw manifest: its columns, its rows, its counts.

What belongs here: the content of a row, and summaries of all rows. Not here: making the rows
(`storage.sources.raw_manifest`).
"""

from typing import Final

import pandas as pd

from storage.base.errors import BadSampleError
from storage.base.fingerprints import combine, fingerprint
from storage.base.modalities import MODALITIES
from storage.sources.case import Case

COLUMNS: Final[dict[str, str]] = {
    "case_id": "str",
    "n_bytes": "int64",
    "mtime_ns": "int64",
    "ctime_ns": "int64",
    "modality": "str",
    "dataset": "str",
    "group": "str",
    "status": "str",
    "reason_code": "str",
    "reason": "str",
    "is_3d": "bool",
    "depth": "int64",
    "height": "int64",
    "width": "int64",
    "channels": "int64",
    "has_gts": "bool",
    "has_boxes": "bool",
    "gt_dtype": "str",
    "n_labels": "int64",
    "content_hash": "str",
    "spacing_z": "float64",
    "spacing_y": "float64",
    "spacing_x": "float64",
    "reader": "str",
    "folder": "str",
    "role": "str",
}
"""Column -> dtype. `case_id` is the path below the root without `.npz`; `reader` fingerprints how files were read.

`folder` is the address of the case's folder where there are several, else empty; `role` is `split` or `train`
(`storage.sources.folders`)."""

_PLACES: Final = {"folder": "", "role": "split"}
"""Columns that earlier manifests lack -> what they would hold."""

_LOGICAL: Final = ["case_id", "content_hash", "modality", "dataset", "group", "status", "reason_code"]

Facts = dict[str, str | bool | int | float]
"""The columns of a row that reading its file fills."""


def with_places(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of cases or slices with `folder` and `role`, as they are where earlier versions left them out."""
    lacking = {name: value for name, value in _PLACES.items() if name not in table.columns}
    return table.assign(**lacking).fillna(_PLACES)


def roles(table: pd.DataFrame) -> "pd.Series[str]":
    """Return the role of each row of a table of cases or slices, as `with_places` does."""
    return table["role"] if "role" in table.columns else pd.Series("split", index=table.index, dtype="str")


def typed(table: pd.DataFrame) -> pd.DataFrame:
    """Return the manifest's columns, in order and of their types."""
    return table[list(COLUMNS)].astype(COLUMNS)


def accepted_facts(case: Case) -> Facts:
    """Return these columns for an accepted case."""
    spacing = case.spacing_zyx or (float("nan"),) * 3
    return {
        "status": "accepted",
        "reason_code": "",
        "reason": "",
        "is_3d": case.is_3d,
        "depth": case.depth,
        "height": case.height,
        "width": case.width,
        "channels": case.channels,
        "has_gts": case.gts is not None,
        "has_boxes": case.boxes is not None,
        "gt_dtype": "" if case.gts is None else case.gts.dtype.name,
        "n_labels": len(case.label_ids()),
        "content_hash": case.content_hash,
        "spacing_z": spacing[0],
        "spacing_y": spacing[1],
        "spacing_x": spacing[2],
    }


def rejected_facts(error: BadSampleError) -> Facts:
    """Return these columns for a rejected file."""
    return {
        "status": "rejected",
        "reason_code": error.code,
        "reason": str(error),
        "is_3d": False,
        **dict.fromkeys(("depth", "height", "width", "channels"), 0),
        "has_gts": False,
        "has_boxes": False,
        "gt_dtype": "",
        "n_labels": 0,
        "content_hash": "",
        **dict.fromkeys(("spacing_z", "spacing_y", "spacing_x"), float("nan")),
    }


def manifest_fingerprint(table: pd.DataFrame) -> str:
    """Return the fingerprint of a manifest's cases; file sizes, times and messages are left out."""
    ordered = table.sort_values("case_id")
    # Left out where all folders are split, so that the manifests of one folder keep their fingerprints.
    names = [*_LOGICAL, *(["role"] if (roles(ordered) != "split").any() else [])]
    return fingerprint({name: combine(ordered[name].astype("str").tolist()) for name in names})


def rejected(table: pd.DataFrame) -> pd.DataFrame:
    """Return case_id, reason_code and reason of the rejected files."""
    return table.loc[table["status"] == "rejected", ["case_id", "reason_code", "reason"]].reset_index(drop=True)


def counts_by_modality(table: pd.DataFrame) -> pd.DataFrame:
    """Count by modality, in canonical order; files without a known modality come last as `unknown`.

    Returns:
        Columns modality, accepted, rejected, volumes, slices, labelled (accepted cases with `gts`), groups (patients),
        n_bytes.
    """
    accepted = table["status"] == "accepted"
    counted = pd.DataFrame(
        {
            "modality": table["modality"].replace("", "unknown"),
            "accepted": accepted,
            "rejected": ~accepted,
            "volumes": table["is_3d"],
            "slices": table["depth"],
            "labelled": table["has_gts"],
            "n_bytes": table["n_bytes"],
        }
    )
    by_modality = counted.groupby("modality")
    counts = by_modality.sum().astype("int64")
    counts.insert(5, "groups", table["group"].groupby(counted["modality"]).nunique().astype("int64"))
    order = [name for name in (*MODALITIES, "unknown") if name in counts.index]
    return counts.loc[order].reset_index()
