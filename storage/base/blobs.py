"""Blobs: named byte strings in one place, which is a folder or an S3 prefix. No other module knows where stores lie.

What belongs here: the interface, its implementation for folders, choosing one by URL. Not here: what the bytes mean, S3
itself (`storage.base.object_blobs`).

Keys are relative, with `/` between their parts. A blob exists whole or not at all.
"""

import errno
import hashlib
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from storage.base.atomic import (
    PARTIAL_SUFFIX,
    create_bytes,
    json_bytes,
    parse_json,
    remove,
    remove_partials,
    write_bytes,
)
from storage.base.errors import BusyError, IntegrityError, StorageError
from storage.base.fingerprints import fingerprint
from storage.base.locks import exclusive_lock, shared_lock

LOCK: Final = ".lock"

JsonObject = dict[str, Any]
"""A parsed JSON object, before a dataclass is made of it."""


class OpenBlob(Protocol):
    """A blob whose ranges are read; safe to share between threads."""

    @property
    def n_bytes(self) -> int:
        """Size of the blob."""

    def read(self, start: int, n_bytes: int) -> bytes:
        """Return `n_bytes` from `start` on, fewer only where the blob ends."""


class Blobs(Protocol):
    """A place for blobs. May be pickled; threads and processes may share it."""

    @property
    def url(self) -> str:
        """Address of the place; `open_blobs` turns it into the place again."""

    def below(self, name: str) -> "Blobs":
        """Return the place of the blobs whose keys begin with `name/`."""

    def read(self, key: str) -> bytes:
        """Return a whole blob.

        Raises:
            FileNotFoundError: If there is none.
        """

    def read_version(self, key: str) -> tuple[bytes, str] | None:
        """Return a whole blob and its version, which changes when the blob is replaced; None if there is no blob."""

    def size(self, key: str) -> int | None:
        """Return the size of a blob in bytes, None if there is none."""

    def open(self, key: str) -> OpenBlob:
        """Open a blob for reading ranges.

        Raises:
            FileNotFoundError: If there is none.
        """

    def put(self, key: str, data: bytes) -> None:
        """Publish a blob, replacing one of that name."""

    def create(self, key: str, data: bytes) -> bool:
        """Publish a blob unless its key exists; return whether it was published."""

    def replace(self, key: str, data: bytes, version: str | None) -> None:
        """Replace the version of a blob that `read_version` returned; None means that there was no blob.

        Raises:
            BusyError: If the blob has another version now.
        """

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Return key -> bytes of the blobs below `prefix` (whole name parts), sorted by key."""

    def delete(self, key: str) -> None:
        """Remove a blob; nothing happens if there is none."""

    def exclusive(self, what: str) -> AbstractContextManager[None]:
        """Lock out other planners, publishers and writers for the block, if the place supports locks.

        Raises:
            BusyError: If one of them holds a lock.
        """

    def shared(self, what: str) -> AbstractContextManager[None]:
        """Lock out planners and publishers for the block, if the place supports locks; other writers may enter.

        Raises:
            BusyError: If a planner or publisher holds the lock.
        """

    def sweep(self) -> int:
        """Remove the temporary files of killed writers; return how many. Call it only within `exclusive`."""


class _OpenFile:
    """An open file; it is closed when nothing refers to it, so that no thread reads from a closed descriptor."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.n_bytes = os.fstat(self._descriptor).st_size

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def read(self, start: int, n_bytes: int) -> bytes:
        return os.pread(self._descriptor, n_bytes, start)


@dataclass(frozen=True)
class LocalBlobs:
    """Blobs as files below a folder; see `Blobs`. A rename publishes a blob; the file `.lock` holds the lock."""

    root: Path

    @property
    def url(self) -> str:
        """The folder's path."""
        return str(self.root)

    def below(self, name: str) -> "LocalBlobs":
        """See `Blobs`."""
        return LocalBlobs(self.root / name)

    def read(self, key: str) -> bytes:
        """See `Blobs`."""
        return self._file(key).read_bytes()

    def read_version(self, key: str) -> tuple[bytes, str] | None:
        """See `Blobs`."""
        try:
            data = self.read(key)
        except FileNotFoundError:
            return None
        return data, hashlib.sha256(data).hexdigest()

    def size(self, key: str) -> int | None:
        """See `Blobs`."""
        path = self.root / key
        return path.stat().st_size if path.is_file() else None

    def open(self, key: str) -> _OpenFile:
        """See `Blobs`."""
        return _OpenFile(self._file(key))

    def put(self, key: str, data: bytes) -> None:
        """See `Blobs`."""
        write_bytes(self._room(key), data)

    def create(self, key: str, data: bytes) -> bool:
        """See `Blobs`."""
        return create_bytes(self._room(key), data)

    def replace(self, key: str, data: bytes, version: str | None) -> None:
        """See `Blobs`; call it within `exclusive`: a folder has no atomic compare-and-replace."""
        found = self.read_version(key)
        if (found[1] if found else None) != version:
            raise BusyError(f"{self.root / key}: expected the version read before, found it replaced since; run again")
        self.put(key, data)

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """See `Blobs`; temporary files and the lock file are left out."""
        found = {}
        for path in sorted((self.root / prefix).rglob("*")):
            if path.is_file() and not path.name.endswith((LOCK, PARTIAL_SUFFIX)):
                found[path.relative_to(self.root).as_posix()] = path.stat().st_size
        return found

    def delete(self, key: str) -> None:
        """See `Blobs`; what lies at the key or above it, and is no blob, stays."""
        path = self.root / key
        if path.is_file():
            path.unlink(missing_ok=True)

    def _file(self, key: str) -> Path:
        """Return a blob's file; a folder, or a link that leads to no file, is no blob."""
        path = self.root / key
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return path

    def _room(self, key: str) -> Path:
        """Return where a blob's file belongs; what lies there or above it and is no blob gives way."""
        path = self.root / key
        for above in [above for above in reversed(path.parents) if above.is_relative_to(self.root)]:
            if not above.is_dir():
                remove(above)
        if not path.is_file():
            remove(path)
        return path

    def exclusive(self, what: str) -> AbstractContextManager[None]:
        """See `Blobs`."""
        return exclusive_lock(self.root / LOCK, what=what)

    def shared(self, what: str) -> AbstractContextManager[None]:
        """See `Blobs`."""
        return shared_lock(self.root / LOCK, what=what)

    def sweep(self) -> int:
        """See `Blobs`."""
        return remove_partials(self.root)


def seal(value: Mapping[str, object]) -> bytes:
    """Return a plain value as JSON, with its own hash under `sha256`."""
    return json_bytes({**value, "sha256": fingerprint(dict(value))})


def unseal(data: bytes, where: str, remedy: str = "run `medsam verify --repair`") -> JsonObject:
    """Return the value that was passed to `seal`.

    Args:
        data: The stored bytes.
        where: Name of the file; begins the error message.
        remedy: What a user should do; ends the error message.

    Raises:
        IntegrityError: If any byte differs from the sealed bytes.
    """
    value: JsonObject = parse_json(data, where, remedy)
    found = value.pop("sha256", None) if isinstance(value, dict) else None
    if found is None or data != seal(value):
        raise IntegrityError(f"{where}: expected JSON that matches its own sha256, found it altered; {remedy}")
    return value


def open_blobs(url: str | Path) -> Blobs:
    """Return the place at a path or an `s3://bucket/prefix`, without reading or creating anything.

    Raises:
        StorageError: If the URL is of another kind.
    """
    scheme, separator, rest = str(url).partition("://")
    if separator and scheme == "s3":
        from storage.base.object_blobs import ObjectBlobs

        return ObjectBlobs(*rest.strip("/").partition("/")[::2])
    if separator:
        raise StorageError(
            f"{url}: expected a path or s3://bucket/prefix, found a URL of kind {scheme!r}; correct the URL"
        )
    return LocalBlobs(Path(url).expanduser().absolute())
