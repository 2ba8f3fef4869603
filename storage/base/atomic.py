"""Atomic publication of files. What belongs here: how bytes reach the disk. Not here: their meaning, locks.

A file appears under its name whole or not at all: the bytes are written to a temporary file beside it and flushed to
the device, then the file is renamed and its folder is flushed.
"""

import errno
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
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


def _name_place(error: OSError, temporary: Path, path: Path) -> None:
    """Put the name of the final file into an error: the system names no file, or only the temporary one."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if full or error.filename2 is not None or error.filename == str(temporary):
        error.filename, error.filename2 = str(path), None


def _aside(path: Path) -> Path:
    """Return a temporary name beside `path` that no other writer uses; a long name is cut."""
    ending = os.fsencode(f".{os.getpid()}-{secrets.token_hex(4)}{PARTIAL_SUFFIX}")
    name = os.fsencode(path.name)[: _NAME_BYTES - len(ending)]
    # A character that the cut would split is left out: some file systems accept only valid UTF-8.
    return path.with_name(name.decode("utf-8", "ignore") + os.fsdecode(ending))


@contextmanager
def _written_aside(path: Path, publish: Callable[[Path], object]) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; once the block ends without an error, flush it and let `publish` name it.

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
        publish(temporary)
    except OSError as error:
        _name_place(error, temporary, path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that appears at `path` only when the block ends without an error."""
    with _written_aside(path, lambda temporary: temporary.replace(path)) as file:
        yield file


def create_bytes(path: Path, data: bytes) -> bool:
    """Publish bytes under `path` atomically unless the file exists; return whether they were published."""
    created = True

    def link(temporary: Path) -> None:
        nonlocal created
        try:
            # Unlike a rename, a link fails if the name exists.
            os.link(temporary, path)
        except FileExistsError:
            created = False

    with _written_aside(path, link) as file:
        file.write(data)
    return created


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


def parse_json(data: bytes, where: str, remedy: str = "remove it and make it again") -> Any:  # noqa: ANN401
    """Return the value that JSON text describes.

    Raises:
        IntegrityError: If the bytes are not JSON; the message begins with `where` and ends with `remedy`.
    """
    try:
        return json.loads(data)
    except ValueError as error:
        raise IntegrityError(f"{where}: expected JSON, found: {error}; {remedy}") from error


def write_parquet(path: Path, table: "pd.DataFrame") -> None:
    """Publish a table as parquet (zstd), atomically; the row index is not stored."""
    with atomic_file(path) as file:
        table.to_parquet(file, engine="pyarrow", compression="zstd", index=False)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that it holds; what a link leads to stays. Nothing may be there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def remove_partials(folder: Path) -> int:
    """Remove the temporary files of killed writers below `folder`; return how many. Call it only under its lock."""
    count = 0
    for path in folder.rglob(f"*{PARTIAL_SUFFIX}"):
        path.unlink(missing_ok=True)
        count += 1
    return count
