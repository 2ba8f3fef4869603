"""Named byte strings below one place, a folder or an S3 prefix: the only module that knows where stores lie.

What belongs here: the interface, the folder, which of them a URL means. Not here: what the bytes mean, S3 itself
(`storage.base.object_blobs`).

Keys are relative, with `/` between their parts. A blob is there whole or not at all.
"""

import hashlib
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from storage.base.atomic import PARTIAL_SUFFIX, create_bytes, json_bytes, parse_json, remove_partials, write_bytes
from storage.base.errors import BusyError, IntegrityError, StorageError
from storage.base.fingerprints import fingerprint
from storage.base.locks import exclusive_lock, shared_lock

LOCK: Final = ".lock"

JsonObject = dict[str, Any]
"""A JSON object as parsed; whoever knows its fields turns it into a dataclass."""


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
        """Where the place is; `open_blobs` of it gives the place again."""

    def below(self, name: str) -> "Blobs":
        """Return the place of the blobs whose keys begin with `name/`."""

    def read(self, key: str) -> bytes:
        """Return a whole blob.

        Raises:
            FileNotFoundError: If there is none.
        """

    def read_version(self, key: str) -> tuple[bytes, str] | None:
        """Return a whole blob and a word that says whether it has been replaced since; None if there is no blob."""

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
        """Publish a blob unless one of that name is there; return whether it was published."""

    def replace(self, key: str, data: bytes, version: str | None) -> None:
        """Publish a blob in place of the version that `read_version` gave; None: of no blob.

        Raises:
            BusyError: If it is not that version any more.
        """

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Return key -> bytes of the blobs below `prefix` (whole name parts), sorted by key."""

    def delete(self, key: str) -> None:
        """Remove a blob; nothing happens if there is none."""

    def exclusive(self, what: str) -> AbstractContextManager[None]:
        """Keep other planners, publishers and writers out for a block, where the place can.

        Raises:
            BusyError: If one of them is at work.
        """

    def shared(self, what: str) -> AbstractContextManager[None]:
        """Keep planners and publishers out for a block, where the place can; other writers may enter.

        Raises:
            BusyError: If a planner or publisher is at work.
        """

    def sweep(self) -> int:
        """Remove what killed writers left; only while `exclusive`. Returns how many."""


class _OpenFile:
    """An open file, closed with its last holder, so that a thread still reading never meets a closed descriptor."""

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
    """Blobs as files below a folder; see `Blobs`. Published by rename, excluded by an advisory lock on `.lock`."""

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
        return (self.root / key).read_bytes()

    def read_version(self, key: str) -> tuple[bytes, str] | None:
        """See `Blobs`."""
        try:
            data = self.read(key)
        except FileNotFoundError:
            return None
        return data, hashlib.sha256(data).hexdigest()

    def size(self, key: str) -> int | None:
        """See `Blobs`."""
        try:
            return (self.root / key).stat().st_size
        except FileNotFoundError:
            return None

    def open(self, key: str) -> _OpenFile:
        """See `Blobs`."""
        return _OpenFile(self.root / key)

    def put(self, key: str, data: bytes) -> None:
        """See `Blobs`."""
        write_bytes(self.root / key, data)

    def create(self, key: str, data: bytes) -> bool:
        """See `Blobs`."""
        return create_bytes(self.root / key, data)

    def replace(self, key: str, data: bytes, version: str | None) -> None:
        """See `Blobs`; call it while `exclusive`, a folder cannot compare and replace in one act."""
        found = self.read_version(key)
        if (found[1] if found else None) != version:
            raise BusyError(f"{self.root / key}: expected it as it was read, found it replaced since; run again")
        self.put(key, data)

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """See `Blobs`; files of writers at work and the lock are none."""
        found = {}
        for path in sorted((self.root / prefix).rglob("*")):
            if path.is_file() and not path.name.endswith((LOCK, PARTIAL_SUFFIX)):
                found[path.relative_to(self.root).as_posix()] = path.stat().st_size
        return found

    def delete(self, key: str) -> None:
        """See `Blobs`."""
        (self.root / key).unlink(missing_ok=True)

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
    """Return a plain value as JSON that holds a hash of itself under `sha256`."""
    return json_bytes({**value, "sha256": fingerprint(dict(value))})


def unseal(data: bytes, where: str, remedy: str = "run `medsam verify --repair`") -> JsonObject:
    """Return the value that `seal` was given.

    Args:
        data: What was stored.
        where: Begins the message of an error.
        remedy: Ends it.

    Raises:
        IntegrityError: If a byte differs from what was sealed.
    """
    value: JsonObject = parse_json(data, where)
    found = value.pop("sha256", None) if isinstance(value, dict) else None
    if found is None or data != seal(value):
        raise IntegrityError(f"{where}: expected JSON that its own sha256 vouches for, found it altered; {remedy}")
    return value


def open_blobs(url: str | Path) -> Blobs:
    """Return the place that a path or an `s3://bucket/prefix` means; nothing is read or made yet.

    Raises:
        StorageError: If it is a URL of another kind.
    """
    scheme, separator, rest = str(url).partition("://")
    if separator and scheme == "s3":
        from storage.base.object_blobs import ObjectBlobs

        return ObjectBlobs(*rest.strip("/").partition("/")[::2])
    if separator:
        raise StorageError(
            f"{url}: expected a path or s3://bucket/prefix, found a URL of kind {scheme!r}; give another"
        )
    return LocalBlobs(Path(url).expanduser().absolute())
