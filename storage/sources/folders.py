"""Several folders as one source, each with a role (`docs/adr/0024`).

What belongs here: which folder a case lies in, and joining lists and maps of patients. Not here: reading a file (the
`Source` of each folder), what a role means for splits (`storage.releases`).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd

from storage.base.errors import StorageError
from storage.sources.case import Case
from storage.sources.patient_map import PatientMap, read_patient_map
from storage.sources.roles import ROLES, Role
from storage.sources.source import Listing, Reading, Source, Use, reject

SAME_ID: Final = "another folder has a case of this path, which is used"
"""Reason for which a file is skipped: an id names one case."""

FOLDER_COUNTS: Final = ("folder", "role", "found", "accepted", "skipped", "rejected")
"""Columns of the table of folders."""


@dataclass(frozen=True)
class Folder:
    """One of several folders."""

    source: Source
    role: Role
    groups_csv: Path | None
    """Its map of files to patients."""

    @property
    def place(self) -> str:
        """The folder's address."""
        return self.source.place


class Folders:
    """Several folders, read as one `Source`; a case's id is its path below its own folder.

    Of files with one id the first is used, those of `split` folders before those of `train` folders, so that adding a
    folder that only trains never changes what is tested.
    """

    def __init__(self, folders: Sequence[Folder], where: Mapping[str, str]) -> None:
        """Join folders.

        Args:
            folders: At least one.
            where: Case id -> place of its folder, as an earlier scan found them; `list` finds them anew.
        """
        self.folders = tuple(sorted(folders, key=lambda folder: ROLES.index(folder.role)))
        self._where = dict(where)
        self._by_place = {folder.place: folder for folder in self.folders}

    @property
    def place(self) -> str:
        """The addresses of all folders."""
        return ", ".join(folder.place for folder in self.folders)

    @property
    def reading(self) -> Reading:
        """How files are read: alike in all folders."""
        return self.folders[0].source.reading

    def list(self) -> Listing:
        """Return every case of every folder; `skipped` has a further column `folder`.

        Raises:
            StorageError: If a folder cannot be listed.
        """
        files, skipped, known = [], [], set[str]()
        self._where = {}
        for folder in self.folders:
            listing = folder.source.list()
            twin = listing.files["case_id"].isin(known)
            own = listing.files[~twin]
            known.update(own["case_id"])
            self._where.update(dict.fromkeys(own["case_id"], folder.place))
            files.append(own)
            skipped.append(listing.skipped.assign(folder=folder.place))
            if twin.any():
                named = ", ".join(listing.files.loc[twin, "case_id"].head(100))
                row = {"reason": SAME_ID, "count": int(twin.sum()), "examples": named, "folder": folder.place}
                skipped.append(pd.DataFrame([row]))
        found = pd.concat(files, ignore_index=True).sort_values("case_id", ignore_index=True)
        return Listing(found, pd.concat(skipped, ignore_index=True))

    def modality(self, case_id: str) -> str:
        """Return the modality that a case's folder states for it; empty if none is stated."""
        return self._of(case_id).source.modality(case_id)

    def memory(self, case_id: str, n_bytes: int, at_ease: int) -> int:
        """Return a bound on the bytes that reading a case takes.

        Raises:
            BadSampleError: If the headers show that the case cannot be used.
        """
        return self._of(case_id).source.memory(case_id, n_bytes, at_ease)

    def read(self, case_id: str, use: Use = Use.LABELS) -> Case:
        """Read a case from its folder.

        Raises:
            BadSampleError: If it cannot be used, for a reason that matters to `use`.
        """
        return self._of(case_id).source.read(case_id, use)

    def places(self, case_ids: "pd.Series[str]") -> pd.DataFrame:
        """Return the columns `folder` and `role` of listed cases."""
        folders = [self._of(case_id) for case_id in case_ids]
        columns = {"folder": [each.place for each in folders], "role": [each.role for each in folders]}
        return pd.DataFrame(columns, index=case_ids.index, dtype="str")

    def patients(self, case_ids: Collection[str]) -> PatientMap | None:
        """Read the map of each folder that has one; None if none has.

        A name in the map of a `train` folder means the patient of that name in a `split` folder only where both are of
        one data set; else the data set is put before the name, for two hospitals may both have a patient 1.

        Raises:
            StorageError: As `read_patient_map`.
        """
        own: dict[str, list[str]] = {folder.place: [] for folder in self.folders}
        for case_id in case_ids:
            own[self._where[case_id]].append(case_id)
        maps = [
            (folder.role, read_patient_map(folder.groups_csv, own[folder.place], folder.place))
            for folder in self.folders
            if folder.groups_csv
        ]
        if not maps:
            return None
        known = [each.by_case for role, each in maps if role == "split"]
        split = pd.concat(known) if known else pd.DataFrame(columns=["dataset", "group"])
        tables = [each.by_case if role == "split" else _apart(each.by_case, split) for role, each in maps]
        return PatientMap(
            by_case=pd.concat(tables),
            without_file=tuple(row for _, each in maps for row in each.without_file),
            without_row=tuple(sorted(row for _, each in maps for row in each.without_row)),
        )

    def counts(self, table: pd.DataFrame, skipped: pd.DataFrame) -> pd.DataFrame:
        """Count what became of the files of each folder: the columns of `FOLDER_COUNTS`.

        Args:
            table: The manifest.
            skipped: Skipped files, as `list` gave them.
        """
        rows = []
        for folder in self.folders:
            status = table.loc[table["folder"] == folder.place, "status"]
            n_skipped = int(skipped.loc[skipped["folder"] == folder.place, "count"].sum())
            accepted = int((status == "accepted").sum())
            found = len(status) + n_skipped
            rows.append((folder.place, folder.role, found, accepted, n_skipped, len(status) - accepted))
        return pd.DataFrame(rows, columns=list(FOLDER_COUNTS))

    def _of(self, case_id: str) -> Folder:
        place = self._where.get(case_id)
        if place not in self._by_place:
            reject("unreadable", "expected a case of the last scan, found none in these folders; run the ingest job")
        return self._by_place[place]


def _apart(own: pd.DataFrame, split: pd.DataFrame) -> pd.DataFrame:
    """Return a map whose patients have other names than those of the same name in another data set of `split`."""
    pairs = set(zip(split["dataset"], split["group"], strict=True))
    names = set(split["group"])
    apart = [
        f"{dataset}/{group}" if group in names and (dataset, group) not in pairs else group
        for dataset, group in zip(own["dataset"], own["group"], strict=True)
    ]
    return own.assign(group=apart)


def require_apart(paths: Sequence[Path]) -> None:
    """Refuse folders of which one is another, or lies in it: its cases would be found twice.

    Raises:
        StorageError: Naming both.
    """
    real = [path.resolve() for path in paths]
    for number, path in enumerate(real):
        for other_number, other in enumerate(real):
            if number != other_number and (path == other or other in path.parents):
                raise StorageError(
                    f"MEDSAM_DATA: expected folders beside each other, found {paths[number]} in {paths[other_number]}; "
                    "give each folder once"
                )
