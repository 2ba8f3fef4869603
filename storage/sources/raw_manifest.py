"""The raw manifest: one row per file of the source, accepted or rejected with a reason.

What belongs here: reading only changed files, and joining the rows. Not here: accepting or rejecting a file (its
`Source`), the columns of the table (`storage.sources.manifest_table`), splits (`storage.releases.release`).

A bad file is a row, never an error. Files are kept as columns; pixels are held only while their file is being hashed.
"""

import logging
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd

from storage.base.errors import BadSampleError
from storage.base.memory_budget import MemoryBudget
from storage.base.modalities import MODALITIES, modality_of_word
from storage.sources.folders import Folders
from storage.sources.manifest_table import COLUMNS, Facts, accepted_facts, rejected_facts, typed, with_places
from storage.sources.patient_map import PatientMap, read_patient_map
from storage.sources.source import SKIPPED_COLUMNS, Reading, Source, reject

logger = logging.getLogger(__name__)

_LISTED: Final = ["case_id", "n_bytes", "mtime_ns", "ctime_ns", "modality", "reader"]
_BATCH: Final = 256
_CHECKPOINT_BATCHES: Final = 100

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ReadLimits:
    """Limits on reading files concurrently."""

    workers: int = 1
    """Threads that read files; inflating and hashing release the interpreter's lock."""
    memory_bytes: int = 4 * 2**30
    """Most bytes of cases in all threads together; a single case that needs more is read while no other is."""


@dataclass(frozen=True, eq=False)
class Scan:
    """The result of a scan."""

    table: pd.DataFrame
    """The manifest: the columns of `COLUMNS`, sorted by case id."""
    skipped: pd.DataFrame
    """Files of the source that are no cases: reason, count, examples."""
    patients: PatientMap | None
    """How the map of patients fits; None without one."""
    folders: pd.DataFrame | None = None
    """What became of the files of each folder, the columns of `storage.sources.folders.FOLDER_COUNTS`; None for one."""


def scan(
    source: Source,
    groups_csv: Path | None = None,
    previous: pd.DataFrame | None = None,
    *,
    limits: ReadLimits | None = None,
    withdrawn: Collection[str] = (),
    progress: Progress | None = None,
    checkpoint: Callable[[pd.DataFrame], None] | None = None,
) -> Scan:
    """Make the manifest of every case of a source.

    A row of `previous` is taken over without opening its file if size, clocks, modality and way of reading are equal;
    only files that could not be opened, or were withdrawn, are always looked at again. Data set and patient are read
    from `groups_csv` every time; without a row there, the data set is the folders between modality and file, and a case
    is a patient of its own.

    Args:
        source: Where the cases are; folders bring maps of their own.
        groups_csv: Map of files to data sets and patients; see `read_patient_map`.
        previous: The table of an earlier scan of the same source.
        limits: How much is read at once.
        withdrawn: Cases that are rejected whatever their file holds, which is not read.
        progress: Called with (files examined, files to examine) after each file.
        checkpoint: Called now and then with a table of the rows so far, fit to be the `previous` of a later call.

    Raises:
        StorageError: If the source or `groups_csv` cannot be used; the message lists everything wrong with the latter.
    """
    listing = source.list()
    several = source if isinstance(source, Folders) else None
    patients = _patients(source, groups_csv, listing.files["case_id"])
    modalities = pd.Series([source.modality(case_id) for case_id in listing.files["case_id"]], dtype="str")
    files = listing.files.assign(modality=modalities)
    files["reader"] = source.reading.now
    usable, refused = _without_withdrawn(files, withdrawn)
    kept = _taken_over(usable, previous, source.reading)
    fresh = usable[~usable["case_id"].isin(kept["case_id"])]
    logger.info("%d files, %d unchanged, %d to read", len(files), len(kept), len(fresh))
    tables = [kept, refused]
    for number, batch in enumerate(_examine_all(source, fresh, limits or ReadLimits(), progress), start=1):
        tables.append(batch)
        if checkpoint and number % _CHECKPOINT_BATCHES == 0:
            checkpoint(_joined(tables, patients, several))
    table = _joined(tables, patients, several)
    # A source that skips nothing may give a table without columns.
    skipped = listing.skipped.reindex(columns=[*SKIPPED_COLUMNS, *(["folder"] if several else [])])
    return Scan(table, skipped, patients, several.counts(table, skipped) if several else None)


def _patients(source: Source, groups_csv: Path | None, case_ids: "pd.Series[str]") -> PatientMap | None:
    if isinstance(source, Folders):
        return source.patients(case_ids)
    return read_patient_map(groups_csv, case_ids, source.place) if groups_csv else None


def _without_withdrawn(files: pd.DataFrame, withdrawn: Collection[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the files that may be used, and the rows of those that are withdrawn."""
    out = files["case_id"].isin(withdrawn)
    error = BadSampleError("withdrawn", "this case is withdrawn; it is not read")
    refused = files[out].reset_index(drop=True)
    return files[~out], refused.join(pd.DataFrame([rejected_facts(error)] * len(refused)))


def _taken_over(files: pd.DataFrame, previous: pd.DataFrame | None, reading: Reading) -> pd.DataFrame:
    """Return the rows of `previous` that are still valid for a listed file."""
    previous = None if previous is None else with_places(previous)
    if previous is None or not set(COLUMNS) <= set(previous.columns):
        return typed(pd.DataFrame(columns=list(COLUMNS)))
    rows = typed(previous[~previous["reason_code"].isin(["unreadable", "withdrawn"])]).drop_duplicates("case_id")
    alike = rows["reader"].isin(reading.accepted_alike) & (rows["status"] == "accepted")
    rows["reader"] = rows["reader"].mask(alike, reading.now)
    return files.merge(rows, on=_LISTED, how="inner", validate="one_to_one")


def _examine_all(
    source: Source, files: pd.DataFrame, limits: ReadLimits, progress: Progress | None
) -> Iterator[pd.DataFrame]:
    """Yield the rows of the files in batches, so that after a batch only its columns stay in memory."""
    budget = MemoryBudget(limits.memory_bytes)

    def examine(case_id: str, n_bytes: int, modality: str) -> Facts:
        """Read one file, once there is memory for it, and return what the manifest says of its content."""
        try:
            _require_modality(modality)
            with budget.taken(source.memory(case_id, n_bytes, limits.memory_bytes // limits.workers)):
                return accepted_facts(source.read(case_id))
        except BadSampleError as error:
            logger.info("%s rejected (%s): %s", case_id, error.code, error)
            return rejected_facts(error)

    with ThreadPoolExecutor(limits.workers) as pool:
        for start in range(0, len(files), _BATCH):
            batch = files.iloc[start : start + _BATCH].reset_index(drop=True)
            facts: list[Facts] = []
            for row in pool.map(examine, batch["case_id"], batch["n_bytes"], batch["modality"]):
                facts.append(row)
                if progress:
                    progress(start + len(facts), len(files))
            yield batch.join(pd.DataFrame(facts))


def _require_modality(modality: str) -> None:
    if not modality:
        remedy = "begin the file's name with one, or put it into a folder named after it"
        reject("no_modality", f"expected one of {', '.join(MODALITIES)}, found none; {remedy}")


def _joined(tables: list[pd.DataFrame], patients: PatientMap | None, several: Folders | None) -> pd.DataFrame:
    """Put the batches together, sorted, with data set and patient, folder and role."""
    table = pd.concat([part for part in tables if len(part)] or tables[:1], ignore_index=True)
    table["dataset"] = [_dataset(*row) for row in zip(table["case_id"], table["modality"], strict=True)]
    table["group"] = table["case_id"]
    if patients is not None:
        for column in ("dataset", "group"):
            table[column] = table["case_id"].map(patients.by_case[column]).fillna(table[column])
    places = several.places(table["case_id"]) if several else {"folder": "", "role": "split"}
    return typed(table.assign(**places)).sort_values("case_id", ignore_index=True)


def _dataset(case_id: str, modality: str) -> str:
    """Return the folders between the outermost one that states the modality and the file, else the modality."""
    folders = case_id.split("/")[:-1]
    for level, folder in enumerate(folders):
        if modality and modality_of_word(folder) == modality:
            return "/".join(folders[level + 1 :]) or modality
    return modality
