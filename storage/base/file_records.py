"""Sizes and hashes of files. What belongs here: computing and comparing them. Not here: whose files they are."""

import hashlib
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from storage.base.fingerprints import file_hash


@dataclass(frozen=True)
class FileRecord:
    """The size and the SHA-256 hex digest of a file or blob."""

    n_bytes: int
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> "FileRecord":
        """Return the record of these bytes."""
        return cls(len(data), hashlib.sha256(data).hexdigest())

    @classmethod
    def of_file(cls, path: Path) -> "FileRecord":
        """Return the record of a file."""
        return cls(path.stat().st_size, file_hash(path))


NO_FILE: Final = -1
"""Size of what lies where a file is expected and is none: a link to nowhere, or to a folder."""


def sizes_below(folder: Path, prefix: str = "") -> dict[str, int]:
    """Return path below the folder -> bytes of every file, `NO_FILE` for links to none; no link leads out of it."""
    found: dict[str, int] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            name = f"{prefix}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                found |= sizes_below(Path(entry.path), f"{name}/")
            else:
                found[name] = _size(entry)
    return found


def _size(entry: os.DirEntry[str]) -> int:
    try:
        status = entry.stat()
    except OSError:  # a link to nowhere, or to itself
        return NO_FILE
    return status.st_size if stat.S_ISREG(status.st_mode) else NO_FILE


def differing_files(
    folder: Path, records: Mapping[str, FileRecord], hashed: Callable[[str, FileRecord], bool]
) -> dict[str, str]:
    """Return path below the folder -> problem, for every file that differs from its record.

    Args:
        folder: The folder.
        records: Its files by path.
        hashed: Decides for each file whether its hash is compared as well as its size.
    """
    sizes, problems = sizes_below(folder), {}
    for name, record in records.items():
        found = sizes.get(name, NO_FILE)
        if found == NO_FILE:
            problems[name] = f"expected {record.n_bytes} bytes, found no file"
        elif found != record.n_bytes:
            problems[name] = f"expected {record.n_bytes} bytes, found {found}"
        elif hashed(name, record) and (digest := file_hash(folder / name)) != record.sha256:
            problems[name] = f"expected sha256 {record.sha256[:16]}, found {digest[:16]}"
    return problems
