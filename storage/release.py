"""Dataset releases: a frozen, fingerprinted choice of labelled slices with their splits.

What belongs here: assigning groups to splits, freezing, saving, comparing and checking a release. Not here: pixels, or
where a release is kept. Training reads a release, never the slice index.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from storage.atomic import read_json, write_json, write_parquet
from storage.errors import IntegrityError, StorageError
from storage.fingerprints import array_hash, combine, fingerprint, require_same
from storage.modalities import MODALITIES

SPLITS: Final = ("train", "validation", "test")
FORMAT_VERSION: Final = 1
"""Bumped by hand whenever a release of the same slices would mean something else."""

_TABLE: Final = "release.parquet"
_SUMMARY: Final = "release.json"
_SPLITS: Final = "splits.json"
_SMALLEST_SPLIT_MODALITY: Final = 3


@dataclass(frozen=True)
class SplitFractions:
    """Share of each modality's groups that validation and test get; training gets the rest."""

    validation: float = 0.1
    test: float = 0.1

    def __post_init__(self) -> None:
        """Check the shares.

        Raises:
            ValueError: If one is not above 0, or nothing is left for training.
        """
        if min(self.validation, self.test) <= 0 or self.validation + self.test >= 1:
            found = f"validation {self.validation}, test {self.test}"
            raise ValueError(
                f"split fractions: expected both above 0 and their sum below 1, found {found}; correct them"
            )

    def targets(self, n_groups: int) -> dict[str, int]:
        """Return how many of a modality's groups test and validation should have, in the order they are filled."""
        if n_groups < _SMALLEST_SPLIT_MODALITY:
            return {"test": 0, "validation": 0}
        n_test = min(max(1, round(self.test * n_groups)), n_groups - 2)
        n_validation = min(max(1, round(self.validation * n_groups)), n_groups - n_test - 1)
        return {"test": n_test, "validation": n_validation}


def labelled_groups(index: pd.DataFrame) -> pd.DataFrame:
    """Return the distinct (modality, group) pairs of the slices that have ground truth: what a release splits."""
    return index.loc[index["gt_array"] != "", ["modality", "group"]].drop_duplicates(ignore_index=True)


def assign_splits(
    groups: pd.DataFrame, recorded: Mapping[str, str], fractions: SplitFractions, seed: int
) -> dict[str, str]:
    """Give every group a split (DESIGN decision 8).

    A group has one split in all its modalities, and a recorded one keeps it for ever. Within each modality, in
    canonical order, groups without a split follow in the order of SHA-256 of `seed:group`: they fill test, then
    validation, each up to its share of the modality's groups and at least one, then training. A modality with fewer
    than three groups goes to training, but for groups that have their split from elsewhere.

    Args:
        groups: Columns modality and group, one row or more for each pair.
        recorded: Group -> split, as assigned before.
        fractions: Shares of validation and test.
        seed: The split's seed.

    Returns:
        Group -> split, of recorded groups and of those in `groups`.

    Raises:
        StorageError: If a recorded split or a modality is unknown.
    """
    _require_known("recorded splits", set(recorded.values()), SPLITS)
    _require_known("modalities", set(groups["modality"].astype("str")), MODALITIES)
    splits = dict(recorded)
    for modality in MODALITIES:
        members = groups.loc[groups["modality"] == modality, "group"].astype("str").unique().tolist()
        ordered = sorted(members, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).digest())
        taken = Counter(splits[group] for group in members if group in splits)
        waiting = iter([group for group in ordered if group not in splits])
        for split, target in fractions.targets(len(members)).items():
            splits.update(dict.fromkeys(islice(waiting, max(0, target - taken[split])), split))
        splits.update(dict.fromkeys(waiting, "train"))
    return splits


def _require_known(what: str, found: set[str], known: tuple[str, ...]) -> None:
    unknown = sorted(found - set(known))
    if unknown:
        raise StorageError(f"{what}: expected {', '.join(known)}, found {', '.join(unknown)}; correct them")


@dataclass(frozen=True, eq=False)
class Release:
    """A frozen choice of slices."""

    table: pd.DataFrame
    """Rows of the slice index that have ground truth, and `split`; sorted by modality, case_id, z."""
    splits: dict[str, str]
    """Group -> split, of the groups in `table`."""
    fingerprints: dict[str, str]
    """`train`, `validation` and `test`: what each one's slices are; `all`: those three together."""

    def split(self, name: str) -> pd.DataFrame:
        """Return the rows of one split, numbered from 0.

        Raises:
            StorageError: If there is no such split.
        """
        _require_known("split", {name}, SPLITS)
        return self.table[self.table["split"] == name].reset_index(drop=True)


def make_release(index: pd.DataFrame, splits: Mapping[str, str]) -> Release:
    """Freeze the slices that have ground truth.

    Args:
        index: The slice index.
        splits: Group -> split; further groups are ignored.

    Raises:
        StorageError: If a group has no split, or a slice is listed twice.
    """
    table = index[index["gt_array"] != ""].sort_values(["modality", "case_id", "z"], ignore_index=True)
    twice = table.loc[table.duplicated(["case_id", "z"]), "case_id"].unique().tolist()
    if twice:
        raise StorageError(f"slice index: expected each slice once, found some twice in {twice[:20]}; build it again")
    used = table["group"].astype("str").unique().tolist()
    lacking = [group for group in used if group not in splits]
    if lacking:
        raise StorageError(f"splits: expected one for each group, found none for {lacking[:20]}; assign splits again")
    table["split"] = table["group"].astype("str").map(dict(splits)).astype("str")
    return Release(table, {group: splits[group] for group in used}, _fingerprints(table))


def _fingerprints(table: pd.DataFrame) -> dict[str, str]:
    parts = {name: _fingerprint_of(table[table["split"] == name]) for name in SPLITS}
    return {**parts, "all": fingerprint(parts)}


def _fingerprint_of(table: pd.DataFrame) -> str:
    """Return the fingerprint of slices: which, of what content, with which labels and boxes."""
    texts = {
        name: combine(table[name].astype("str").tolist()) for name in ("case_id", "content_hash", "modality", "group")
    }
    numbers = {"z": table["z"].to_numpy(np.int64), **_flattened(table, "labels"), **_flattened(table, "boxes")}
    return fingerprint({"format": FORMAT_VERSION, "numbers": array_hash(numbers), **texts})


def _flattened(table: pd.DataFrame, name: str) -> dict[str, npt.NDArray[np.int64]]:
    """Return a column of lists as its values and lengths, whether it holds Python lists or what parquet returns."""
    lists = pa.array(table[name].to_numpy(dtype=object), type=pa.large_list(pa.int64()))
    return {name: lists.flatten().to_numpy(), f"{name} lengths": np.diff(lists.offsets.to_numpy()).astype(np.int64)}


def save_release(folder: Path, release: Release) -> None:
    """Write a release into a folder: its table, its splits and, last, its summary."""
    write_parquet(folder / _TABLE, release.table)
    write_json(folder / _SPLITS, release.splits)
    summary = {
        "format": FORMAT_VERSION,
        "fingerprints": release.fingerprints,
        "slices": {name: int((release.table["split"] == name).sum()) for name in SPLITS},
    }
    write_json(folder / _SUMMARY, summary)


def load_release(folder: Path) -> Release:
    """Read a release and check that it is what was frozen.

    Raises:
        StorageError: If the folder holds no whole release, or one of another format.
        IntegrityError: If a file cannot be read.
        FingerprintMismatchError: If its table or splits are not what was frozen.
    """
    missing = [name for name in (_TABLE, _SPLITS, _SUMMARY) if not (folder / name).is_file()]
    if missing:
        raise StorageError(f"{folder}: expected a release, found no {', '.join(missing)}; freeze it again")
    summary = read_json(folder / _SUMMARY)
    remedy = f"delete {folder} and freeze the release again"
    require_same(f"release in {folder}", {"format": FORMAT_VERSION}, {"format": summary.get("format")}, remedy)
    try:
        table = pd.read_parquet(folder / _TABLE, engine="pyarrow")
    except (pa.ArrowException, OSError) as error:
        raise IntegrityError(f"{folder / _TABLE}: expected a parquet table, found: {error}; {remedy}") from error
    splits: dict[str, str] = read_json(folder / _SPLITS)
    assigned = dict(zip(table["group"].astype("str"), table["split"].astype("str"), strict=True))
    found = {"fingerprints": _fingerprints(table), "splits": assigned}
    require_same(f"release in {folder}", {"fingerprints": summary["fingerprints"], "splits": splits}, found, remedy)
    return Release(table, splits, summary["fingerprints"])


def release_difference(old: Release, new: Release) -> dict[str, list[str]]:
    """List the cases by which two releases differ.

    Returns:
        Sorted case ids under `added`, `removed`, and `changed` (other content, modality, group or split).
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
    return release.table[columns].drop_duplicates("case_id").set_index("case_id").astype("str")


def leakage(release: Release) -> list[str]:
    """Return a line for every group, and every content that several cases share, found in more than one split."""
    cases = release.table[["case_id", "group", "content_hash", "split"]].drop_duplicates()
    lines: list[str] = []
    for column in ("group", "content_hash"):
        n_splits = cases.groupby(column)["split"].transform("nunique")
        for value, rows in cases[n_splits > 1].groupby(column):
            where = ", ".join(
                f"{case_id} in {split}" for case_id, split in zip(rows["case_id"], rows["split"], strict=True)
            )
            lines.append(f"{column} {value}: {where}")
    return lines
