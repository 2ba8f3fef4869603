"""Atomic writing of model files. What belongs here: how bytes reach the disk. Not here: what they mean.

`storage.base.atomic` does the same for stores; the two packages never import each other.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing; it appears at `path`, complete and flushed to disk, if the block ends well.

    A writer that is killed leaves `path` as it was, and at most `<path>.<process id>-<random>.partial` beside it.
    A long name is shortened there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    ending = f".{os.getpid()}-{secrets.token_hex(4)}.partial"
    # File systems allow names of 255 bytes; `ignore` drops a letter that the cut has split.
    name = os.fsencode(path.name)[: 255 - len(ending)].decode("utf-8", "ignore")
    temporary = path.with_name(f"{name}{ending}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
