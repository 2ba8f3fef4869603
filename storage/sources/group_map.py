"""The map of files to data sets and patients, as users write it.

What belongs here: reading and judging it. Not here: what a group means for splits (`storage.releases.splits`).
"""

import logging
from pathlib import Path

import pandas as pd

from storage.base.errors import StorageError
from storage.sources.npz_listing import ENDING

logger = logging.getLogger(__name__)


def read_groups(path: Path) -> pd.DataFrame:
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


def report_coverage(case_ids: pd.Series, groups: pd.DataFrame) -> None:
    """Warn of rows without a file and of files without a row."""
    unknown = groups["file"][~groups.index.isin(case_ids)].tolist()
    if unknown:
        logger.warning("group map: %d rows name no file of the source: %s", len(unknown), ", ".join(unknown[:20]))
    alone = case_ids[~case_ids.isin(groups.index)].tolist()
    if alone:
        logger.warning("group map: %d files have no row and are their own group: %s", len(alone), ", ".join(alone[:20]))
