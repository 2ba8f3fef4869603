"""Which patient belongs to training, validation or test.

What belongs here: assigning splits, and finding patients that share content. Not here: the release, which freezes the
assignment (`storage.releases.release`), the record of the assignment.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import pandas as pd

from storage.base.errors import StorageError
from storage.base.modalities import MODALITIES
from storage.sources.manifest_table import roles

SPLITS: Final = ("train", "validation", "test")
"""From the least to the most held out. Content in several splits is kept only in the last of them."""

_SMALLEST_SPLIT_MODALITY: Final = 3


@dataclass(frozen=True)
class SplitFractions:
    """Share of each modality's patients that validation and test get; training gets the rest."""

    validation: float = 0.1
    test: float = 0.1

    def __post_init__(self) -> None:
        """Check the shares.

        Raises:
            ValueError: If a share is not above 0, or no share is left for training.
        """
        if min(self.validation, self.test) <= 0 or self.validation + self.test >= 1:
            found = f"validation {self.validation}, test {self.test}"
            raise ValueError(
                f"split fractions: expected both above 0 and their sum below 1, found {found}; correct them"
            )

    def targets(self, n_patients: int) -> dict[str, int]:
        """Return how many of a modality's patients test and validation should have, in the order they are filled."""
        if n_patients < _SMALLEST_SPLIT_MODALITY:
            return {"test": 0, "validation": 0}
        n_test = min(max(1, round(self.test * n_patients)), n_patients - 2)
        n_validation = min(max(1, round(self.validation * n_patients)), n_patients - n_test - 1)
        return {"test": n_test, "validation": n_validation}


def labelled_patients(index: pd.DataFrame) -> pd.DataFrame:
    """Return modality and patient (columns modality, group) of the slices with ground truth, each pair once."""
    return index.loc[index["gt_array"] != "", ["modality", "group"]].drop_duplicates(ignore_index=True)


def patients_to_draw(index: pd.DataFrame) -> pd.DataFrame:
    """Return the distinct (modality, group) pairs of the slices that show a label: what trains, selects and tests."""
    return index.loc[(index["gt_array"] != "") & (index["fg_px"] > 0), ["modality", "group"]].drop_duplicates(
        ignore_index=True
    )


def left_to_draw(index: pd.DataFrame, splits: Mapping[str, str]) -> pd.DataFrame:
    """Return what `patients_to_draw` does, without slices of `train` folders whose patient is held out."""
    return patients_to_draw(index[(roles(index) == "split") | (index["group"].map(dict(splits)) == "train")])


def families(index: pd.DataFrame) -> dict[str, str]:
    """Return the families of labelled patients who share content: patient -> first member of the family by name.

    Two patients belong to one family if a case of the one has the content (`content_hash`) of a case of the other, or
    if both belong to the family of a third patient.
    """
    cases = index.loc[index["gt_array"] != "", ["content_hash", "group"]].drop_duplicates().astype("str")
    shared = cases[cases.duplicated("content_hash", keep=False)]
    parent: dict[str, str] = {}

    def root(patient: str) -> str:
        while parent.setdefault(patient, patient) != patient:
            parent[patient] = parent[parent[patient]]
            patient = parent[patient]
        return patient

    for _, patients in shared.groupby("content_hash")["group"]:
        first, *others = sorted({root(patient) for patient in patients})
        parent.update(dict.fromkeys(others, first))
    return {patient: root(patient) for patient in sorted(parent)}


def assign_splits(
    patients: pd.DataFrame,
    recorded: Mapping[str, str],
    fractions: SplitFractions,
    seed: int,
    tied: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Give every patient a split (`docs/adr/0021-splits.md`).

    A patient has one split in all its modalities, and a recorded one keeps it for ever. Patients of one family share
    theirs: those that come later join the most held out split of the recorded ones. Within each modality, in canonical
    order, patients without a split follow in the order of SHA-256 of `seed:patient`: they fill test, then validation,
    each up to its share of the modality's patients and at least one, then training. A modality with fewer than three
    patients goes to training, but for patients that have their split from another modality.

    Args:
        patients: Columns modality and group, one row or more for each pair.
        recorded: Patient -> split, as assigned before.
        fractions: Shares of validation and test.
        seed: The split's seed.
        tied: What `families` gave.

    Returns:
        Patient -> split, of recorded patients and of those in `patients`.

    Raises:
        StorageError: If a recorded split or a modality is unknown.
    """
    _require_known("recorded splits", set(recorded.values()), SPLITS)
    _require_known("modalities", set(patients["modality"].astype("str")), MODALITIES)
    kin = _kin(tied or {})
    splits = dict(recorded)
    for family in set(kin.values()):
        known = [splits[patient] for patient in family if patient in splits]
        if known:
            chosen = max(known, key=SPLITS.index)
            splits.update({patient: chosen for patient in family if patient not in splits})
    for modality in MODALITIES:
        members = patients.loc[patients["modality"] == modality, "group"].astype("str").unique().tolist()
        _fill(splits, members, fractions, seed, kin)
    return splits


def patients_by_split(patients: pd.DataFrame, splits: Mapping[str, str]) -> pd.DataFrame:
    """Count patients by modality, in canonical order: modality, train, validation, test.

    Args:
        patients: Columns modality and group, one row or more for each pair.
        splits: Patient -> split.
    """
    pairs = patients[["modality", "group"]].astype("str").drop_duplicates()
    counts = Counter(zip(pairs["modality"], pairs["group"].map(dict(splits)), strict=True))
    found = [name for name in MODALITIES if any(counts[name, split] for split in SPLITS)]
    columns = {split: [counts[name, split] for name in found] for split in SPLITS}
    return pd.DataFrame({"modality": pd.Series(found, dtype="str"), **columns})


def require_all_splits(
    patients: pd.DataFrame, splits: Mapping[str, str], tied: Mapping[str, str], besides: str = ""
) -> None:
    """Refuse patients of which none trains, none selects a model or none tests it.

    Args:
        patients: As in `assign_splits`.
        splits: What it gave.
        tied: What `families` gave.
        besides: What else there is and counts for nothing, to be told.

    Raises:
        StorageError: With the patients needed and found, by modality and in all.
    """
    counts = patients_by_split(patients, splits)
    empty = [split for split in SPLITS if not counts[split].sum()]
    if not empty:
        return
    names = patients["group"].astype("str").unique()
    totals = zip(counts["modality"], counts[list(SPLITS)].sum(axis=1), strict=True)
    listing = ", ".join(f"{modality} {number}" for modality, number in totals) or "none"
    distinct = len({tied.get(name, name) for name in names})
    same = f", {distinct} when those that share identical cases count as one" if distinct < len(names) else ""
    raise StorageError(
        f"splits: expected patients with labelled cases for {', '.join(SPLITS)}, for which one modality needs at least "
        f"{_SMALLEST_SPLIT_MODALITY}, found none for {', '.join(empty)}: {len(names)} in all ({listing}){same}"
        f"{besides}. No split was recorded. Add labelled cases of further patients, or correct the map of patients "
        "(MEDSAM_GROUPS) if it merges them"
    )


def _kin(tied: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Return patient -> its family's members."""
    by_family: defaultdict[str, list[str]] = defaultdict(list)
    for patient, family in tied.items():
        by_family[family].append(patient)
    return {patient: tuple(members) for members in by_family.values() for patient in members}


def _fill(
    splits: dict[str, str], members: list[str], fractions: SplitFractions, seed: int, kin: Mapping[str, tuple[str, ...]]
) -> None:
    """Give the patients of one modality their splits, and with each its family."""
    ordered = sorted(members, key=lambda patient: hashlib.sha256(f"{seed}:{patient}".encode()).digest())
    own = set(members)
    taken = Counter(splits[patient] for patient in members if patient in splits)

    def waiting() -> Iterator[str]:
        for patient in ordered:
            if patient not in splits:
                yield patient

    for split, target in fractions.targets(len(members)).items():
        for patient in waiting():
            if taken[split] >= target:
                break
            family = kin.get(patient, (patient,))
            splits.update(dict.fromkeys(family, split))
            taken[split] += len(own.intersection(family))
    for patient in waiting():
        splits.update(dict.fromkeys(kin.get(patient, (patient,)), "train"))


def _require_known(what: str, found: set[str], known: tuple[str, ...]) -> None:
    unknown = sorted(found - set(known))
    if unknown:
        raise StorageError(f"{what}: expected {', '.join(known)}, found {', '.join(unknown)}; correct them")
