"""Dataset releases: a frozen, fingerprinted choice of labelled slices with their splits.

What belongs here: freezing, saving, comparing and checking a release. Not here: assigning splits
(`storage.releases.splits`), pixels, the folder of a release. Training reads a release, never the slice index.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from storage.base.atomic import read_json, write_json, write_parquet
from storage.base.errors import StorageError
from storage.base.fingerprints import array_hash, combine, file_hash, fingerprint, require_same
from storage.releases.columns import SliceColumns
from storage.releases.splits import SPLITS
from storage.sources.manifest_table import roles

FORMAT_VERSION: Final = 1
"""Raised by hand whenever the files of a release change their meaning."""

DISTILLATION: Final = "distillation"
"""Beside the names of splits, in fingerprints and files: the training split with the slices without ground truth."""

_TABLE: Final = "release.parquet"
_UNLABELLED: Final = "unlabelled.parquet"
_SUMMARY: Final = "release.json"
_SPLITS: Final = "splits.json"
_LEFT_OUT: Final = "left_out.json"
_FILES: Final = (_TABLE, _SPLITS, _LEFT_OUT)


@dataclass(frozen=True, eq=False)
class Release:
    """A frozen choice of slices."""

    table: pd.DataFrame
    """Rows of the slice index that have ground truth, and `split`; sorted by modality, case_id, z."""
    splits: dict[str, str]
    """Patient -> split, of the patients in `table`."""
    fingerprints: dict[str, str]
    """Fingerprints of the slices of `train`, `validation` and `test`, and under `all` of all together; where there are
    slices without ground truth, under `distillation` that of those and the training split."""
    left_out: pd.DataFrame
    """case_id, split, kept_in: cases left out of `split`, because the split `kept_in` holds the same content, or,
    where `kept_in` is empty, because they come from a `train` folder and their patient is held out."""
    unlabelled: pd.DataFrame | None = None
    """Rows of the slice index without ground truth, sorted alike; None if there are none."""

    def split(self, name: str) -> pd.DataFrame:
        """Return the rows of one split, or of what distillation draws, numbered from 0.

        Raises:
            StorageError: If there is no such split.
        """
        if name == DISTILLATION and self.unlabelled is not None:
            return _with_unlabelled(self.table[self.table["split"] == "train"], self.unlabelled)
        if name not in SPLITS:
            raise StorageError(f"split: expected {', '.join(SPLITS)}, found {name}; correct it")
        return self.table[self.table["split"] == name].reset_index(drop=True)


def _with_unlabelled(labelled: pd.DataFrame, unlabelled: pd.DataFrame) -> pd.DataFrame:
    """Return both, sorted together, so that a file which gains labels keeps its place."""
    both = pd.concat([labelled, unlabelled.assign(split="train")], ignore_index=True)
    return both.sort_values(["modality", "case_id", "z"], ignore_index=True)


def make_release(index: pd.DataFrame, splits: Mapping[str, str], unlabelled: pd.DataFrame | None = None) -> Release:
    """Freeze the slices that have ground truth, and those without that distillation draws.

    Content that cases of several splits share, because their patients were recorded before it was found to be the same,
    stays in the most held out of them and is left out of the others. Cases of `train` folders are never held out: those
    of patients whose split is validation or test are left out.

    Args:
        index: The slice index.
        splits: Patient -> split; further patients are ignored.
        unlabelled: Rows of the index without ground truth (`storage.releases.unlabelled`); None or none: distillation
            draws the training split alone.

    Raises:
        StorageError: If a patient has no split, or a slice is listed twice.
    """
    table = index[index["gt_array"] != ""].sort_values(["modality", "case_id", "z"], ignore_index=True)
    twice = table.loc[table.duplicated(["case_id", "z"]), "case_id"].unique().tolist()
    if twice:
        raise StorageError(f"slice index: expected each slice once, found some twice in {twice[:20]}; build it again")
    lacking = [patient for patient in table["group"].astype("str").unique() if patient not in splits]
    if lacking:
        raise StorageError(f"splits: expected one for each patient, found none for {lacking[:20]}; assign splits again")
    table["split"] = table["group"].astype("str").map(dict(splits)).astype("str")
    left_out = _all_left_out(table)
    table = table[~table["case_id"].isin(left_out["case_id"])].reset_index(drop=True)
    used = table["group"].astype("str").unique()
    extra = None if unlabelled is None or unlabelled.empty else unlabelled
    return Release(table, {name: splits[name] for name in used}, _fingerprints(table, extra), left_out, extra)


def _leaking(table: pd.DataFrame) -> pd.DataFrame:
    """Return the cases whose content is also in a later split of `SPLITS`: case_id, split, kept_in."""
    cases = table[["case_id", "content_hash", "split"]].drop_duplicates("case_id").astype("str")
    rank = cases["split"].map(SPLITS.index)
    highest = rank.groupby(cases["content_hash"]).transform("max")
    found = cases.assign(kept_in=[SPLITS[number] for number in highest])[rank < highest]
    return found[["case_id", "split", "kept_in"]].reset_index(drop=True)


def _all_left_out(table: pd.DataFrame) -> pd.DataFrame:
    """Return what is left out, as `Release.left_out` has it."""
    leaking, strays = _leaking(table), held_out_of_train_folders(table)
    strays = strays[~strays["case_id"].isin(leaking["case_id"])].assign(kept_in="")
    return pd.concat([leaking, strays], ignore_index=True) if len(strays) else leaking


def held_out_of_train_folders(table: pd.DataFrame) -> pd.DataFrame:
    """Return case_id and split of the cases of `train` folders in validation and test."""
    stray = (roles(table) == "train") & (table["split"] != "train")
    return table.loc[stray, ["case_id", "split"]].drop_duplicates("case_id").astype("str").reset_index(drop=True)


def duplicates(table: pd.DataFrame) -> pd.DataFrame:
    """Return the content that several cases share: content_hash, cases (how many), groups (patients), case_ids."""
    cases = table[["case_id", "content_hash", "group"]].drop_duplicates("case_id").astype("str")
    shared = cases[cases.duplicated("content_hash", keep=False)].groupby("content_hash")
    found = shared.agg(cases=("case_id", "size"), groups=("group", "nunique"), case_ids=("case_id", ", ".join))
    return found.reset_index()


def _fingerprints(table: pd.DataFrame, unlabelled: pd.DataFrame | None) -> dict[str, str]:
    parts = {name: _fingerprint_of(table[table["split"] == name]) for name in SPLITS}
    if unlabelled is not None:
        parts[DISTILLATION] = _fingerprint_of(_with_unlabelled(table[table["split"] == "train"], unlabelled))
    return {**parts, "all": fingerprint(parts)}


def _fingerprint_of(table: pd.DataFrame) -> str:
    """Return the fingerprint of slices; it covers their case, content, labels and boxes."""
    texts = {
        name: combine(table[name].astype("str").tolist()) for name in ("case_id", "content_hash", "modality", "group")
    }
    numbers = {"z": table["z"].to_numpy(np.int64), **_flattened(table, "labels"), **_flattened(table, "boxes")}
    return fingerprint({"format": FORMAT_VERSION, "numbers": array_hash(numbers), **texts})


def _flattened(table: pd.DataFrame, name: str) -> dict[str, npt.NDArray[np.int64]]:
    """Return the values and the lengths of a column of lists, which are Python lists or arrays read from parquet."""
    lists = pa.array(table[name].to_numpy(dtype=object), type=pa.large_list(pa.int64()))
    return {name: lists.flatten().to_numpy(), f"{name} lengths": np.diff(lists.offsets.to_numpy()).astype(np.int64)}


def save_release(folder: Path, release: Release) -> None:
    """Write a release into a folder: its table, its splits, each split's columns and, last, its summary."""
    write_parquet(folder / _TABLE, release.table)
    write_json(folder / _SPLITS, release.splits)
    write_json(folder / _LEFT_OUT, release.left_out.to_dict("records"))
    names = [*SPLITS, *([] if release.unlabelled is None else [DISTILLATION])]
    for name in names:
        SliceColumns.of(release.split(name)).save(folder / _columns_file(name))
    files = [*_FILES, *map(_columns_file, names)]
    if release.unlabelled is not None:
        write_parquet(folder / _UNLABELLED, release.unlabelled)
        files.append(_UNLABELLED)
    summary = {
        "format": FORMAT_VERSION,
        "fingerprints": release.fingerprints,
        "slices": {name: int((release.table["split"] == name).sum()) for name in SPLITS},
        "sha256": {name: file_hash(folder / name) for name in files},
    }
    write_json(folder / _SUMMARY, summary)


def _columns_file(split: str) -> str:
    return f"{split}.arrow"


def _require_frozen(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """Check that files of a release are unchanged, byte for byte, and return its summary."""
    missing = [name for name in (*names, _SUMMARY) if not (folder / name).is_file()]
    if missing:
        raise StorageError(f"{folder}: expected a release, found no {', '.join(missing)}; freeze it again")
    summary: dict[str, Any] = read_json(folder / _SUMMARY)
    remedy = f"delete {folder} and freeze the release again"
    require_same(f"release in {folder}", {"format": FORMAT_VERSION}, {"format": summary.get("format")}, remedy)
    # For a million rows, computing the fingerprints again takes a minute, hashing the files a second.
    frozen = {name: summary["sha256"].get(name) for name in names}
    found = {name: file_hash(folder / name) for name in names}
    require_same(f"release in {folder}", {"sha256": frozen}, {"sha256": found}, remedy)
    return summary


def open_split(folder: Path, split: str) -> SliceColumns:
    """Open the columns of one split, or of what distillation draws, rows as in `Release.split`; the file is checked.

    Raises:
        StorageError: If the folder holds no complete release.
        FingerprintMismatchError: If the release has another format, or the file has changed since it was frozen.
    """
    _require_frozen(folder, [_columns_file(split)])
    return SliceColumns.open(folder / _columns_file(split))


def load_release(folder: Path) -> Release:
    """Read a release and check that its files are unchanged, byte for byte.

    Raises:
        StorageError: If the folder holds no complete release.
        FingerprintMismatchError: If the release has another format, or a file has changed since it was frozen.
    """
    summary = _require_frozen(folder, _FILES)
    table = pd.read_parquet(folder / _TABLE, engine="pyarrow")
    splits: dict[str, str] = read_json(folder / _SPLITS)
    left_out = pd.DataFrame(read_json(folder / _LEFT_OUT), columns=["case_id", "split", "kept_in"])
    if _UNLABELLED not in summary["sha256"]:
        return Release(table, splits, summary["fingerprints"], left_out)
    _require_frozen(folder, [_UNLABELLED])
    unlabelled = pd.read_parquet(folder / _UNLABELLED, engine="pyarrow")
    return Release(table, splits, summary["fingerprints"], left_out, unlabelled)


def release_difference(old: Release, new: Release) -> dict[str, list[str]]:
    """List the cases by which two releases differ.

    Returns:
        Sorted case ids under `added`, `removed`, and `changed` (other content, modality, patient or split, labels
        gained or lost).
    """
    before, after = _cases(old), _cases(new)
    common = before.index.intersection(after.index)
    differs = (before.loc[common] != after.loc[common]).any(axis=1)
    return {
        "added": sorted(after.index.difference(before.index)),
        "removed": sorted(before.index.difference(after.index)),
        "changed": sorted(common[differs.to_numpy()]),
    }


def _cases(release: Release) -> pd.DataFrame:
    columns = ["case_id", "content_hash", "modality", "group", "split"]
    return _everything(release)[columns].drop_duplicates("case_id").set_index("case_id").astype("str")


def _everything(release: Release) -> pd.DataFrame:
    """Return all rows; those without ground truth are of the training split."""
    return release.table if release.unlabelled is None else _with_unlabelled(release.table, release.unlabelled)


def leakage(release: Release) -> list[str]:
    """Return a line for every patient, and every content that several cases share, found in more than one split."""
    cases = _everything(release)[["case_id", "group", "content_hash", "split"]].drop_duplicates()
    lines: list[str] = []
    for column, what in (("group", "patient"), ("content_hash", "content")):
        n_splits = cases.groupby(column)["split"].transform("nunique")
        for value, rows in cases[n_splits > 1].groupby(column):
            where = ", ".join(
                f"{case_id} in {split}" for case_id, split in zip(rows["case_id"], rows["split"], strict=True)
            )
            lines.append(f"{what} {value}: {where}")
    return lines
