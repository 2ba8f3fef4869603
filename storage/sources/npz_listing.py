"""Finding the npz files below a folder, millions of them, as columns.

What belongs here: walking folders and reading sizes and clocks. Not here: opening a file, or what its name means.
"""

import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pandas as pd

from storage.base.errors import StorageError

ENDING: Final = ".npz"


def list_files(root: Path) -> pd.DataFrame:
    """List every npz file below a folder: case_id, n_bytes, mtime_ns, ctime_ns, sorted by case id.

    Raises:
        StorageError: If a folder cannot be listed.
    """
    case_ids: list[str] = []
    numbers = array("q")
    try:
        for relative, found in _walk(str(root)):
            case_ids.append(relative)
            numbers.extend((found.st_size, found.st_mtime_ns, found.st_ctime_ns))
    except OSError as error:
        found_instead = f"{error.strerror}; correct the path or its access rights"
        raise StorageError(f"{error.filename}: expected a readable folder, found: {found_instead}") from error
    columns = {name: numbers[start::3] for start, name in enumerate(("n_bytes", "mtime_ns", "ctime_ns"))}
    table = pd.DataFrame({"case_id": pd.Series(case_ids, dtype="str"), **columns})
    return table.sort_values("case_id", ignore_index=True)


def _walk(root: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield (case id, stat) of each file, in no particular order; a folder reached twice is listed once."""
    pending = [("", root)]
    visited: set[tuple[int, int]] = set()
    while pending:
        prefix, folder = pending.pop()
        identity = os.stat(folder)  # noqa: PTH116 - a str, as scandir gives it: no Path per folder
        if (identity.st_dev, identity.st_ino) in visited:
            continue
        visited.add((identity.st_dev, identity.st_ino))
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    pending.append((f"{prefix}{entry.name}/", entry.path))
                elif entry.name.endswith(ENDING) and (found := _stat(entry)):
                    # a name that is not UTF-8 is escaped: parquet cannot hold it, and the file is then unreadable
                    name = f"{prefix}{entry.name.removesuffix(ENDING)}"
                    yield name.encode("utf-8", "backslashreplace").decode(), found


def _stat(entry: os.DirEntry[str]) -> os.stat_result | None:
    """Return a file's or broken link's stat; None for pipes and devices, and for a file that has just gone."""
    try:
        if entry.is_file():
            return entry.stat()
        return entry.stat(follow_symlinks=False) if entry.is_symlink() else None
    except FileNotFoundError:
        return None
