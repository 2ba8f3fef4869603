"""The raw manifest: one row per npz file of the source, accepted or rejected with a reason.

What belongs here: finding files, reading only those that changed, the table and its counts. Not here: what makes a file
good (`storage.sources.npz_source`), splits (`storage.releases.release`).

A bad file is a row, never an error. Files are kept as columns; pixels are held only while their file is being hashed.
"""

import logging
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import pandas as pd

from storage.base.errors import BadSampleError, StorageError
from storage.base.fingerprints import combine, fingerprint
from storage.base.memory_budget import Room
from storage.base.modalities import MODALITIES, modality_of, modality_of_word
from storage.sources.npy_archive import reject
from storage.sources.npz_listing import ENDING, list_files
from storage.sources.npz_source import READER_VERSION, NpzCase, SourceConfig, case_memory, read_case

logger = logging.getLogger(__name__)

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

_LISTED: Final = ["case_id", "n_bytes", "mtime_ns", "ctime_ns", "modality", "reader"]
_LOGICAL: Final = ["case_id", "content_hash", "modality", "dataset", "group", "status", "reason_code"]
_BATCH: Final = 256
_CHECKPOINT_BATCHES: Final = 100

Facts = dict[str, Any]


def scan(
    root: Path,
    config: SourceConfig,
    groups_csv: Path | None = None,
    previous: pd.DataFrame | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    workers: int = 1,
    memory_bytes: int = 4 * 2**30,
    withdrawn: Collection[str] = (),
    checkpoint: Callable[[pd.DataFrame], None] | None = None,
) -> pd.DataFrame:
    """Make the manifest of every `*.npz` file below a folder, sorted by case id.

    A row of `previous` is taken over without opening its file if size, clocks, modality and way of reading are equal;
    only files that could not be opened, or were withdrawn, are always looked at again. Data set and group are read from
    `groups_csv` every time; without a row there, the data set is the folders between modality and file, and a case is
    its own group.

    Args:
        root: Source folder; linked folders below it are followed once.
        config: How its files are to be understood.
        groups_csv: Table with the columns file (below `root`, with `.npz`), dataset, group; further ones are ignored.
        previous: An earlier result for the same root.
        progress: Called with (files examined, files to examine) after each file.
        workers: Threads that read files; inflating and hashing run outside the interpreter's lock.
        memory_bytes: Memory that cases may take in all threads together; a single one that needs more is read alone.
        withdrawn: Cases that are rejected whatever their file holds, which is not read.
        checkpoint: Called now and then with a table of the rows so far, fit to be the `previous` of a later call.

    Returns:
        A table with the columns of `COLUMNS`.

    Raises:
        StorageError: If the folder or `groups_csv` cannot be used; the message lists everything wrong with the latter.
    """
    groups = _read_groups(groups_csv) if groups_csv else None
    files = list_files(root)
    files["modality"] = [_modality(case_id) for case_id in files["case_id"]]
    files["reader"] = fingerprint({"version": READER_VERSION, **asdict(config)})[:16]
    kept = _taken_over(files, previous)
    files, refused = _apart(files, withdrawn)
    kept = kept[~kept["case_id"].isin(refused["case_id"])]
    fresh = files[~files["case_id"].isin(kept["case_id"])]
    logger.info("%s: %d files, %d unchanged, %d to read", root, len(files), len(kept), len(fresh))
    tables = [kept, refused]
    batches = _examine_all(root, fresh, config, progress or (lambda _done, _total: None), workers, memory_bytes)
    for number, batch in enumerate(batches, start=1):
        tables.append(batch)
        if checkpoint and number % _CHECKPOINT_BATCHES == 0:
            checkpoint(_finished(tables, groups))
    if groups is not None:
        _report_coverage(files["case_id"], groups)
    return _finished(tables, groups)


def _apart(files: pd.DataFrame, withdrawn: Collection[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the files that may be used, and the rows of those that are withdrawn."""
    out = files["case_id"].isin(withdrawn)
    error = BadSampleError("withdrawn", "this case is withdrawn; it is not read")
    refused = files[out].reset_index(drop=True)
    return files[~out], refused.join(pd.DataFrame([_rejected_facts(error)] * len(refused)))


def _modality(case_id: str) -> str:
    *folders, name = case_id.split("/")
    return modality_of(name, reversed(folders)) or ""


def _taken_over(files: pd.DataFrame, previous: pd.DataFrame | None) -> pd.DataFrame:
    """Return the rows of `previous` that still hold for a listed file."""
    if previous is None or not set(COLUMNS) <= set(previous.columns):
        return _typed(pd.DataFrame(columns=list(COLUMNS)))
    usable = _typed(previous[~previous["reason_code"].isin(["unreadable", "withdrawn"])]).drop_duplicates("case_id")
    return files.merge(usable, on=_LISTED, how="inner", validate="one_to_one")


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    return table[list(COLUMNS)].astype(COLUMNS)


def _examine_all(
    root: Path,
    files: pd.DataFrame,
    config: SourceConfig,
    progress: Callable[[int, int], None],
    workers: int,
    memory_bytes: int,
) -> Iterator[pd.DataFrame]:
    """Yield the rows of the files in batches, so that only columns outlive a batch."""
    room = Room(memory_bytes)

    def examine(case_id: str, n_bytes: int, modality: str) -> Facts:
        """Read one file, once there is room for it, and return what the manifest says of its content."""
        path = root / f"{case_id}{ENDING}"
        try:
            _require_modality(modality)
            with room.taken(case_memory(path, n_bytes, config, memory_bytes // workers)):
                return _accepted_facts(read_case(path, case_id, modality, config))
        except BadSampleError as error:
            logger.info("%s rejected (%s): %s", case_id, error.code, error)
            return _rejected_facts(error)

    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(files), _BATCH):
            batch = files.iloc[start : start + _BATCH].reset_index(drop=True)
            facts: list[Facts] = []
            for row in pool.map(examine, batch["case_id"], batch["n_bytes"], batch["modality"]):
                facts.append(row)
                progress(start + len(facts), len(files))
            yield batch.join(pd.DataFrame(facts))


def _require_modality(modality: str) -> None:
    if not modality:
        remedy = "begin the file's name with one, or put it into a folder named after it"
        reject("no_modality", f"expected one of {', '.join(MODALITIES)}, found none; {remedy}")


def _accepted_facts(case: NpzCase) -> Facts:
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


def _rejected_facts(error: BadSampleError) -> Facts:
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


def _finished(tables: list[pd.DataFrame], groups: pd.DataFrame | None) -> pd.DataFrame:
    """Put the batches together, sorted, with data set and group."""
    table = pd.concat([part for part in tables if len(part)] or tables[:1], ignore_index=True)
    table["dataset"] = [_dataset(*row) for row in zip(table["case_id"], table["modality"], strict=True)]
    table["group"] = table["case_id"]
    if groups is not None:
        for column in ("dataset", "group"):
            table[column] = table["case_id"].map(groups[column]).fillna(table[column])
    return _typed(table).sort_values("case_id", ignore_index=True)


def _dataset(case_id: str, modality: str) -> str:
    """Return the folders between the outermost one that states the modality and the file, else the modality."""
    folders = case_id.split("/")[:-1]
    for level, folder in enumerate(folders):
        if modality and modality_of_word(folder) == modality:
            return "/".join(folders[level + 1 :]) or modality
    return modality


def _read_groups(path: Path) -> pd.DataFrame:
    """Read the group map, indexed by case id.

    Raises:
        StorageError: Listing everything wrong with it.
    """
    try:
        table = pd.read_csv(path, dtype="str", keep_default_na=False)
    except (OSError, ValueError) as error:
        raise StorageError(f"{path}: expected a CSV table with file, dataset, group, found: {error}") from error
    missing = [name for name in ("file", "dataset", "group") if name not in table.columns]
    if missing:
        raise StorageError(f"{path}: expected the columns file, dataset, group, found none of name {missing}; add them")
    problems = [f"{file}: listed twice" for file in table["file"][table["file"].duplicated()].unique()]
    problems += [f"{file}: does not end in {ENDING}" for file in table["file"][~table["file"].str.endswith(ENDING)]]
    for column in ("dataset", "group"):
        problems += [f"{file}: empty {column}" for file in table["file"][table[column] == ""]]
    if problems:
        listing = "\n  ".join(problems)
        raise StorageError(f"{path}: expected one complete row per file, found:\n  {listing}\ncorrect these rows")
    return table.set_index(table["file"].str.removesuffix(ENDING))


def _report_coverage(case_ids: pd.Series, groups: pd.DataFrame) -> None:
    """Warn of rows without a file and of files without a row."""
    unknown = groups["file"][~groups.index.isin(case_ids)].tolist()
    if unknown:
        logger.warning("group map: %d rows name no file of the source: %s", len(unknown), ", ".join(unknown[:20]))
    alone = case_ids[~case_ids.isin(groups.index)].tolist()
    if alone:
        logger.warning("group map: %d files have no row and are their own group: %s", len(alone), ", ".join(alone[:20]))


def manifest_fingerprint(table: pd.DataFrame) -> str:
    """Return the fingerprint of what a manifest says of its cases; no sizes, clocks or messages."""
    ordered = table.sort_values("case_id")
    return fingerprint({name: combine(ordered[name].astype("str").tolist()) for name in _LOGICAL})


def rejected(table: pd.DataFrame) -> pd.DataFrame:
    """Return case_id, reason_code and reason of the rejected files."""
    return table.loc[table["status"] == "rejected", ["case_id", "reason_code", "reason"]].reset_index(drop=True)


def counts_by_modality(table: pd.DataFrame) -> pd.DataFrame:
    """Count by modality, in canonical order; files without a known modality come last as `unknown`.

    Returns:
        Columns modality, accepted, rejected, volumes, slices, labelled (accepted cases with `gts`), groups, n_bytes.
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
