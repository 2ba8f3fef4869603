"""Atomic publication of files. What belongs here: how bytes reach the disk. Not here: their meaning, locks.

A file appears under its name whole or not at all: written aside, flushed to the device, renamed, its folder flushed.
"""

import errno
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from storage.base.errors import IntegrityError

if TYPE_CHECKING:
    import pandas as pd

PARTIAL_SUFFIX = ".partial"

_NAME_BYTES = 255
"""Longest name of a file on the file systems of Linux, macOS and Windows."""


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _name_place(error: OSError, path: Path) -> None:
    """Say which file a full disk could not take, which the system does not; not the name it is written aside under."""
    if error.filename2 is not None or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        error.filename, error.filename2 = str(path), None


def _aside(path: Path) -> Path:
    """Return a name beside `path` that no other writer has; of a long name only the beginning is in it."""
    ending = os.fsencode(f".{os.getpid()}-{secrets.token_hex(4)}{PARTIAL_SUFFIX}")
    name = os.fsencode(path.name)[: _NAME_BYTES - len(ending)]
    # A letter of several bytes that the cut goes through is left out: some file systems take UTF-8 alone.
    return path.with_name(name.decode("utf-8", "ignore") + os.fsdecode(ending))


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that appears at `path` only when the block ends without an error.

    The temporary name is `path` + process id + a random word + `.partial`, so that two threads never share one; a
    killed writer leaves at most that file behind, and `remove_partials` clears it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _aside(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        _name_place(error, path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def create_bytes(path: Path, data: bytes) -> bool:
    """Publish bytes under `path` atomically unless a file is there; return whether they were published."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _aside(path)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # A link, unlike a rename, fails where the name is taken.
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        _name_place(error, path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)
    return True


def write_bytes(path: Path, data: bytes) -> None:
    """Publish bytes under `path` atomically."""
    with atomic_file(path) as file:
        file.write(data)


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401
    """Publish a plain value as indented JSON with sorted keys, atomically."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:  # noqa: ANN401
    """Return a plain value as indented JSON with sorted keys."""
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> Any:  # noqa: ANN401
    """Read a JSON file.

    Raises:
        IntegrityError: If its text is not JSON.
    """
    return parse_json(path.read_bytes(), str(path))


def parse_json(data: bytes, where: str) -> Any:  # noqa: ANN401
    """Return the value that JSON text describes.

    Raises:
        IntegrityError: If it is no JSON; the message begins with `where`.
    """
    try:
        return json.loads(data)
    except ValueError as error:
        raise IntegrityError(f"{where}: expected JSON, found: {error}; remove it and make it again") from error


def write_parquet(path: Path, table: "pd.DataFrame") -> None:
    """Publish a table as parquet (zstd), atomically; the row index is not stored."""
    with atomic_file(path) as file:
        table.to_parquet(file, engine="pyarrow", compression="zstd", index=False)


def remove_partials(folder: Path) -> int:
    """Remove what killed writers left below `folder`; call only while holding its lock. Returns how many."""
    count = 0
    for path in folder.rglob(f"*{PARTIAL_SUFFIX}"):
        path.unlink(missing_ok=True)
        count += 1
    return count
