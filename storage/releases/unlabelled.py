"""Images without ground truth, which distillation alone draws (`docs/adr/0029`).

What belongs here: which of them a release may hold, and which show what is held out. Not here: freezing the release
(`storage.releases.release`), splits of patients (`storage.releases.splits`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from storage.base.fingerprints import array_hash
from storage.releases.splits import SPLITS

_SIZE: Final = ["modality", "is_3d", "depth", "height", "width", "channels"]
"""Columns in which equal images are equal."""

_HELD_OUT: Final = SPLITS[1:]
"""Splits that select and test."""

OF_A_PATIENT: Final = "its patient is held out"
COPY: Final = "its image is that of a held out case"

ReadCase = Callable[[Sequence[int]], npt.NDArray[np.uint8]]
"""Takes the rows of a case in the index and returns its images."""


@dataclass(frozen=True, eq=False)
class Unlabelled:
    """Slices without ground truth.

    Attributes:
        table: Rows of the slice index that may be used, sorted by modality, case_id, z.
        left_out: case_id, reason.
    """

    table: pd.DataFrame
    left_out: pd.DataFrame


def without_labels(index: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a slice index whose file has no ground truth."""
    return index[index["gt_array"] == ""]


def of_held_out_patients(table: pd.DataFrame, splits: Mapping[str, str]) -> "pd.Series[bool]":
    """Return which rows of a slice index are of patients in validation or test.

    Args:
        table: Rows of the slice index.
        splits: Patient -> split; a patient without one is not held out.
    """
    return table["group"].astype("str").map(dict(splits)).isin(_HELD_OUT)


def choose_unlabelled(index: pd.DataFrame, splits: Mapping[str, str], copies: Iterable[str]) -> Unlabelled:
    """Choose the slices without ground truth that distillation may draw.

    Args:
        index: The slice index.
        splits: Patient -> split; cases of patients in validation and test are left out.
        copies: Cases that show what a held out case shows (`copies_of_held_out`).
    """
    table = without_labels(index).sort_values(["modality", "case_id", "z"], ignore_index=True)
    held_out = of_held_out_patients(table, splits)
    copied = table["case_id"].isin(list(copies)) & ~held_out
    left_out = table.loc[held_out | copied, ["case_id"]].assign(
        reason=np.where(copied[held_out | copied], COPY, OF_A_PATIENT)
    )
    return Unlabelled(table[~held_out & ~copied].reset_index(drop=True), left_out.drop_duplicates(ignore_index=True))


def copies_of_held_out(index: pd.DataFrame, splits: Mapping[str, str], read: ReadCase) -> list[str]:
    """Return the cases without ground truth whose image is that of a case of a held out patient, with labels or not.

    A content hash covers the labels, so it does not find them. Only images of one size are read and compared.

    Args:
        index: The slice index.
        splits: Patient -> split.
        read: Reads a case.
    """
    held_out = of_held_out_patients(index, splits)
    candidates = without_labels(index[~held_out])
    if candidates.empty:
        return []
    sizes = candidates[_SIZE].drop_duplicates()
    alike = index[held_out].reset_index(names="row").merge(sizes, on=_SIZE)
    known = set(_image_hashes(alike, read).values())
    rows = candidates.reset_index(names="row").merge(alike[_SIZE].drop_duplicates(), on=_SIZE)
    return sorted(case_id for case_id, digest in _image_hashes(rows, read).items() if digest in known)


def _image_hashes(table: pd.DataFrame, read: ReadCase) -> dict[str, str]:
    """Return case -> hash of its image; `row` numbers the rows of the index."""
    ordered = table.sort_values(["case_id", "z"])
    return {
        str(case_id): array_hash({"imgs": read(rows["row"].to_list())})
        for case_id, rows in ordered.groupby("case_id", sort=False)
    }
