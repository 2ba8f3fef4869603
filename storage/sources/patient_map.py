"""The map of files to data sets and patients, as users write it.

What belongs here: reading it, and finding the case that each row means. Not here: what a patient means for splits
(`storage.releases.splits`).
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

import pandas as pd

from storage.base.errors import StorageError

_COLUMNS: Final = ["file", "dataset", "group"]
_ENDING: Final = re.compile(r"\.[A-Za-z]{1,5}$")


@dataclass(frozen=True, eq=False)
class PatientMap:
    """What a map says of the cases of a source."""

    by_case: pd.DataFrame
    """dataset and group, by case id."""
    without_file: tuple[str, ...] = ()
    """Rows, as written, that name no file of the source."""
    without_row: tuple[str, ...] = ()
    """Cases that no row names: each is a patient of its own."""


def read_patient_map(path: Path, case_ids: Iterable[str], place: str) -> PatientMap:
    """Read a map and find the case that each row names.

    A row's path may be written with backslashes, with `./` in front, with or without an ending, and with folders in
    front that all rows have in common or that the source itself lies in. Each row names one case at most; as it is
    written first, and only then with folders left out.

    Args:
        path: CSV table with the columns file, dataset, group; further ones are ignored.
        case_ids: The cases of the source.
        place: Where the source lies.

    Raises:
        StorageError: Listing everything wrong with the rows, if no row names a case, or if most rows name none while
            most cases have none: then the map is one of something else.
    """
    table = _read(path)
    known = set(case_ids)
    found = [case_id or "" for case_id in _cases_of(table["file"].tolist(), known, place)]
    named = pd.Series(found, dtype="str")
    twice = named[(named != "") & named.duplicated(keep=False)]
    if len(twice):
        written = table["file"][twice.index]
        problems = [f"{file}: listed twice, as {case}" for file, case in zip(written, twice, strict=True)]
        raise _incomplete(path, problems)
    if known and not any(found):
        instead = f"{len(table)} rows, such as {table['file'][0]!r}" if len(table) else "no rows at all"
        raise StorageError(
            f"{path}: expected rows that name files in {place}, found none: {instead}, where files are such as "
            f"{min(known)!r}; write each path as it is below that folder, or take away a map of another data set"
        )
    _require_half(path, table["file"], found, known, place)
    rows = table[named != ""].assign(case_id=named[named != ""])
    return PatientMap(
        by_case=rows.set_index("case_id")[["dataset", "group"]],
        without_file=tuple(table["file"][named == ""]),
        without_row=tuple(sorted(known - set(found))),
    )


def _require_half(path: Path, files: pd.Series, found: list[str], known: set[str], place: str) -> None:
    """Refuse a map that leaves most of its rows and most cases without the other.

    A map of more data sets than are here, or of a part of the cases, fits well on one of the two sides.

    Raises:
        StorageError: With the counts and examples.
    """
    n_named = sum(1 for case_id in found if case_id)
    if 2 * n_named >= min(len(files), len(known)):
        return
    without = next(file for file, case_id in zip(files, found, strict=True) if not case_id)
    raise StorageError(
        f"{path}: expected rows that name files in {place}, found {n_named} of {len(files)} that do, for {len(known)} "
        f"files: {without!r} names none, and {min(known - set(found))!r} has no row. Each file without a row would be "
        "a patient of its own; write each path as it is below that folder, or remove the rows that are not meant"
    )


def _incomplete(path: Path, problems: list[str]) -> StorageError:
    listing = "\n  ".join(problems)
    return StorageError(f"{path}: expected one complete row per file, found:\n  {listing}\ncorrect these rows")


def _read(path: Path) -> pd.DataFrame:
    """Read the table.

    Raises:
        StorageError: If it is none, or listing its incomplete rows.
    """
    try:
        table = pd.read_csv(path, dtype="str", keep_default_na=False)
    except (OSError, ValueError) as error:
        raise StorageError(f"{path}: expected a CSV table with file, dataset, group, found: {error}") from error
    missing = [name for name in _COLUMNS if name not in table.columns]
    if missing:
        raise StorageError(
            f"{path}: expected the columns file, dataset, group, found {list(table.columns)}; add {missing}"
        )
    problems = [f"{file}: listed twice" for file in table["file"][table["file"].duplicated()].unique()]
    problems += [f"row {row + 2}: empty file" for row in table.index[table["file"].str.strip() == ""]]
    for column in ("dataset", "group"):
        problems += [f"{file}: empty {column}" for file in table["file"][table[column].str.strip() == ""]]
    problems += _spelt_twice(table["group"])
    if problems:
        raise _incomplete(path, problems)
    return table[_COLUMNS]


def _spelt_twice(groups: pd.Series) -> list[str]:
    """Name the groups that differ in blanks alone: one patient under two names could come into two splits."""
    distinct = groups.drop_duplicates()
    twins = distinct[distinct.str.strip().duplicated(keep=False)]
    spellings = twins.map(repr).groupby(twins.str.strip(), sort=False).agg(" and ".join)
    return [f"group {spelling} differ in blanks alone" for spelling in spellings]


def _cases_of(files: list[str], known: set[str], place: str) -> Iterator[str | None]:
    """Yield the case that each row's path names, None if it names none."""
    paths = [_plain(file) for file in files]
    plain = [_first_known(path, known) for path in paths]
    shared = 0 if any(plain) else _folders_in_front(paths, known)
    above = PurePosixPath(place.replace("\\", "/")).parts
    prefixes = ["/".join(above[start:]).lstrip("/") + "/" for start in range(len(above))]
    for path, case_id in zip(paths, plain, strict=True):
        yield case_id or _first_known(_cut(path, shared), known) or _below(path, prefixes, known)


def _folders_in_front(paths: list[str], known: set[str]) -> int:
    """Return how many folders that all paths begin with are to be left out, so that at least half name a case."""
    shortest = min((path.count("/") for path in paths), default=0)
    for folders in range(1, shortest + 1):
        if len({tuple(path.split("/")[:folders]) for path in paths}) > 1:
            break
        if 2 * sum(1 for path in paths if _first_known(_cut(path, folders), known)) >= len(paths):
            return folders
    return 0


def _plain(file: str) -> str:
    """Return a path with slashes and without what says nothing: `./`, empty folders, a drive's letter."""
    parts = file.strip().replace("\\", "/").split("/")
    return "/".join(part for part in parts if part not in ("", ".") and not part.endswith(":"))


def _first_known(path: str, known: set[str]) -> str | None:
    """Return the case that a path names with its ending, or without."""
    stem = _ENDING.sub("", path)
    return path if path in known else stem if stem in known else None


def _cut(path: str, folders: int) -> str:
    return path.split("/", folders)[-1]


def _below(path: str, prefixes: list[str], known: set[str]) -> str | None:
    """Return the case that a path names below one of the folders that the source lies in."""
    for prefix in prefixes:
        if path.startswith(prefix) and (case_id := _first_known(path.removeprefix(prefix), known)):
            return case_id
    return None
