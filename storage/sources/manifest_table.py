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
}
"""Column -> dtype. `case_id` is the path below the root without `.npz`; `reader` fingerprints how files were read."""

_LOGICAL: Final = ["case_id", "content_hash", "modality", "dataset", "group", "status", "reason_code"]

Facts = dict[str, str | bool | int | float]
"""The columns of a row that reading its file fills."""


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
    return fingerprint({name: combine(ordered[name].astype("str").tolist()) for name in _LOGICAL})


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
