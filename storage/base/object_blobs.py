"""Blobs in an S3 bucket, through obstore. What belongs here: S3 as a place for blobs. Not here: what the blobs mean.

Address and credentials come from the usual variables: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION,
AWS_ENDPOINT_URL, and AWS_ALLOW_HTTP for an endpoint without TLS. A put is atomic. S3 has no locks: `create` and
`replace` use conditional puts (`If-None-Match`, `If-Match`) instead.
"""

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import S3Store

from storage.base.errors import BusyError, StorageError


def _store(bucket: str) -> S3Store:
    return _client(bucket, os.environ.get("AWS_ENDPOINT_URL"), os.getpid())


@cache
def _client(bucket: str, _endpoint: str | None, _process: int) -> S3Store:
    """Return a client; each process has its own, because the client's threads do not survive a fork."""
    return S3Store(bucket)


def _reason(error: Exception) -> str:
    """Return the error code of the server, or the first line of the client's message if there is none."""
    code = re.search(r"<Code>(\w+)</Code>", str(error))
    return code[1] if code else str(error).partition("\n")[0]


@contextmanager
def _server_errors(url: str) -> Iterator[None]:
    """Turn errors of the server and of the network into a `StorageError` that says what to check."""
    try:
        yield
    except (AlreadyExistsError, PreconditionError):
        raise
    except (BaseError, OSError) as error:
        if isinstance(error, FileNotFoundError) and "NoSuchBucket" not in str(error):
            raise FileNotFoundError(f"{url}: expected an object, found none") from error
        raise StorageError(
            f"{url}: expected an answer from S3, found: {_reason(error)}; check the bucket, the AWS_* "
            "variables and the network, then run again"
        ) from error


@dataclass(frozen=True)
class _OpenObject:
    """An object whose ranges are read."""

    bucket: str
    key: str
    n_bytes: int

    def read(self, start: int, n_bytes: int) -> bytes:
        if n_bytes <= 0:
            return b""
        with _server_errors(f"s3://{self.bucket}/{self.key}"):
            return bytes(obstore.get_range(_store(self.bucket), self.key, start=start, length=n_bytes))


@dataclass(frozen=True)
class ObjectBlobs:
    """Blobs as objects whose keys begin with a prefix; see `storage.base.blobs.Blobs`."""

    bucket: str
    prefix: str = ""

    @property
    def url(self) -> str:
        """`s3://bucket/prefix`."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{key}".strip("/")

    def below(self, name: str) -> "ObjectBlobs":
        """See `Blobs`."""
        return ObjectBlobs(self.bucket, self._key(name))

    def read(self, key: str) -> bytes:
        """See `Blobs`."""
        with _server_errors(f"{self.url}/{key}"):
            return bytes(obstore.get(_store(self.bucket), self._key(key)).bytes())

    def read_version(self, key: str) -> tuple[bytes, str] | None:
        """See `Blobs`; the version is the object's ETag."""
        try:
            with _server_errors(f"{self.url}/{key}"):
                found = obstore.get(_store(self.bucket), self._key(key))
                return bytes(found.bytes()), str(found.meta["e_tag"])
        except FileNotFoundError:
            return None

    def size(self, key: str) -> int | None:
        """See `Blobs`."""
        try:
            with _server_errors(f"{self.url}/{key}"):
                return int(obstore.head(_store(self.bucket), self._key(key))["size"])
        except FileNotFoundError:
            return None

    def open(self, key: str) -> _OpenObject:
        """See `Blobs`."""
        size = self.size(key)
        if size is None:
            raise FileNotFoundError(f"{self.url}/{key}: expected an object, found none")
        return _OpenObject(self.bucket, self._key(key), size)

    def put(self, key: str, data: bytes) -> None:
        """See `Blobs`."""
        with _server_errors(f"{self.url}/{key}"):
            obstore.put(_store(self.bucket), self._key(key), data)

    def create(self, key: str, data: bytes) -> bool:
        """See `Blobs`."""
        try:
            self._put_if(key, data, "create")
        except AlreadyExistsError:
            return False
        return True

    def replace(self, key: str, data: bytes, version: str | None) -> None:
        """See `Blobs`."""
        try:
            self._put_if(key, data, "create" if version is None else {"e_tag": version})
        except (AlreadyExistsError, PreconditionError) as error:
            raise BusyError(
                f"{self.url}/{key}: expected the version read before, found it replaced since; run again"
            ) from error

    def _put_if(self, key: str, data: bytes, mode: Any) -> None:  # noqa: ANN401
        with _server_errors(f"{self.url}/{key}"):
            obstore.put(_store(self.bucket), self._key(key), data, mode=mode, use_multipart=False)

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """See `Blobs`."""
        skipped = len(self.prefix) + 1 if self.prefix else 0
        with _server_errors(f"{self.url}/{prefix}"):
            listed = [item for page in obstore.list(_store(self.bucket), self._key(prefix) or None) for item in page]
        return {item["path"][skipped:]: int(item["size"]) for item in sorted(listed, key=lambda item: item["path"])}

    def delete(self, key: str) -> None:
        """See `Blobs`."""
        with _server_errors(f"{self.url}/{key}"):
            obstore.delete(_store(self.bucket), self._key(key))

    def exclusive(self, what: str) -> AbstractContextManager[None]:  # noqa: ARG002 - S3 has no locks
        """See `Blobs`; no lock is taken: `create` and `replace` detect another writer."""
        return nullcontext()

    def shared(self, what: str) -> AbstractContextManager[None]:  # noqa: ARG002 - S3 has no locks
        """See `Blobs`; no lock is taken."""
        return nullcontext()

    def sweep(self) -> int:
        """See `Blobs`; an interrupted put leaves nothing that is listed."""
        return 0
