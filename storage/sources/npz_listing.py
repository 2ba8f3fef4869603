"""Finding the npz files below a folder, millions of them, as columns.

What belongs here: walking folders, reading sizes and times of files, reporting skipped files. Not here: opening a file,
the meaning of its name.
"""

import os
from array import array
from collections import Counter, defaultdict
from itertools import product
from pathlib import Path
from typing import Final

import pandas as pd

from storage.base.errors import StorageError
from storage.sources.source import SKIPPED_COLUMNS, Listing

ENDING: Final = ".npz"
ENDINGS: Final = tuple("." + "".join(letters) for letters in product("nN", "pP", "zZ"))
"""Every spelling of the ending, the usual one first; of files that differ only in the ending, the first is used."""

_EXAMPLES: Final = 100
"""Most paths that are named for each reason of skipping."""


class _Found:
    """The files that a walk has found so far."""

    def __init__(self) -> None:
        self.case_ids: list[str] = []
        self.numbers = array("q")
        self.oddly_ended: dict[str, tuple[str, os.stat_result]] = {}
        """Case id -> ending and stat."""
        self.counts: Counter[str] = Counter()
        self.examples: defaultdict[str, list[str]] = defaultdict(list)

    def take(self, case_id: str, stat: os.stat_result) -> None:
        self.case_ids.append(case_id)
        self.numbers.extend((stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))

    def take_oddly_ended(self, case_id: str, ending: str, stat: os.stat_result) -> None:
        kept = self.oddly_ended.setdefault(case_id, (ending, stat))
        if kept[0] != ending:
            first, second = sorted((kept, (ending, stat)), key=lambda item: ENDINGS.index(item[0]))
            self.oddly_ended[case_id] = first
            self.skip(case_id + second[0], _TWIN)

    def skip(self, path: str, reason: str) -> None:
        self.counts[reason] += 1
        if len(self.examples[reason]) < _EXAMPLES:
            self.examples[reason].append(path)


NO_NPZ: Final = "no npz file"
"""Reason of skipping; followed by the ending of the file, if it has one."""
_TWIN: Final = "its name differs from a file that is taken in the ending's case alone"
_HIDDEN: Final = "hidden file, as systems and editors leave them"
_HIDDEN_FOLDER: Final = "hidden folder, as systems keep deleted or earlier files in"
_SPECIAL: Final = "no ordinary file"


def list_files(root: Path) -> Listing:
    """List every npz file below a folder; its ending may be in upper case, hidden files and folders are skipped.

    A folder below it that cannot be listed is skipped and reported; so is a file whose status cannot be read.

    Raises:
        StorageError: If the folder itself cannot be listed.
    """
    found = _Found()
    pending, visited = [("", str(root))], set[tuple[int, int]]()
    while pending:
        prefix, folder = pending.pop()
        try:
            pending += _list_folder(prefix, folder, visited, found)
        except OSError as error:
            if not prefix:
                remedy = "correct the path or its access rights"
                raise StorageError(f"{folder}: expected a readable folder, found: {error.strerror}; {remedy}") from None
            found.skip(prefix, f"folder that cannot be listed: {error.strerror}")
    ordinary = set(found.case_ids) if found.oddly_ended else set()
    for case_id, (ending, stat) in found.oddly_ended.items():
        if case_id in ordinary:
            found.skip(case_id + ending, _TWIN)
        else:
            found.take(case_id, stat)
    return _listing(found)


def _listing(found: _Found) -> Listing:
    columns = {name: found.numbers[start::3] for start, name in enumerate(("n_bytes", "mtime_ns", "ctime_ns"))}
    files = pd.DataFrame({"case_id": pd.Series(found.case_ids, dtype="str"), **columns})
    rows = [(reason, count, ", ".join(sorted(found.examples[reason]))) for reason, count in found.counts.items()]
    skipped = pd.DataFrame(rows, columns=list(SKIPPED_COLUMNS)).sort_values("reason", ignore_index=True)
    return Listing(files.sort_values("case_id", ignore_index=True), skipped)


def _list_folder(prefix: str, folder: str, visited: set[tuple[int, int]], found: _Found) -> list[tuple[str, str]]:
    """Record the files of one folder, in no particular order; return its folders. A folder is listed only once."""
    identity = os.stat(folder)  # noqa: PTH116 - a str, as scandir gives it: no Path per folder
    if (identity.st_dev, identity.st_ino) in visited:
        return []
    visited.add((identity.st_dev, identity.st_ino))
    folders = []
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                if entry.is_dir() and entry.name.startswith("."):
                    found.skip(f"{_escaped(prefix + entry.name)}/", _HIDDEN_FOLDER)
                elif entry.is_dir():
                    folders.append((f"{_escaped(prefix + entry.name)}/", entry.path))
                else:
                    _take_file(prefix, entry, found)
            except OSError as error:
                found.skip(_escaped(prefix + entry.name), f"cannot be looked at: {error.strerror}")
    return folders


def _take_file(prefix: str, entry: os.DirEntry[str], found: _Found) -> None:
    path = _escaped(prefix + entry.name)
    stem, ending = os.path.splitext(path)  # noqa: PTH122 - a str, as scandir gives it: no Path per file
    if ending.lower() != ENDING:
        # Digits after a dot are no ending: otherwise each number would be a separate reason.
        found.skip(path, f"{NO_NPZ}: *{ending}" if ending[1:].isalpha() else NO_NPZ)
    elif entry.name.startswith("."):
        found.skip(path, _HIDDEN)
    elif not entry.is_file() and not entry.is_symlink():
        found.skip(path, _SPECIAL)
    else:
        # A broken link is listed, so that reading rejects it as unreadable.
        stat = entry.stat(follow_symlinks=entry.is_file())
        if ending == ENDING:
            found.take(stem, stat)
        else:
            found.take_oddly_ended(stem, ending, stat)


def _escaped(name: str) -> str:
    """Return a name that parquet can store; a file whose name is not UTF-8 is later rejected as unreadable."""
    return name.encode("utf-8", "backslashreplace").decode()
