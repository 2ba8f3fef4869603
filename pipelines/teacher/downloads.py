"""Fetching a file by URL. What belongs here: resuming, progress, verification. Not here: what the file is."""

import os
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import requests

from pipelines.base.settings import InputError
from storage.base.fingerprints import file_hash, fingerprint
from storage.base.locks import exclusive_lock

ATTEMPTS = 5
"""How often a broken connection is resumed before the user is told."""

PIECE_BYTES = 2**16
"""Bytes received at once; a broken connection loses at most these."""

_TIMEOUT_S = 60
_BROKEN = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
"""What `requests` raises for a connection that fails: before the answer, by waiting, and amid the content."""


def require_sha256(path: Path, source: str, expected: str | None) -> str:
    """Return the SHA-256 of a file.

    Raises:
        InputError: If another one is expected.
    """
    found = file_hash(path)
    if expected is not None and found != expected:
        raise InputError(
            f"{source}: expected SHA-256 {expected}, found {found}; give the right file, or the SHA-256 of this one"
        )
    return found


def download(url: str, folder: Path, sha256: str | None, log: Callable[[str], None], *, pause_s: float = 2.0) -> Path:
    """Fetch a file unless it is there; a killed or broken download is resumed.

    Args:
        url: http or https.
        folder: Receives `<digest of the URL>/<name>`, whole or not at all; a part of it has the suffix `.part`.
        sha256: What the file must be; None takes any. A file with another hash is fetched again.
        log: Where progress is said, once every 5 %.
        pause_s: Seconds before the first attempt to go on; doubled each time.

    Raises:
        InputError: If it cannot be fetched, or is not the file expected; nothing is then kept under its name.
        BusyError: If another process is fetching it.
    """
    path = folder / fingerprint(url)[:16] / (PurePosixPath(urlsplit(url).path).name or "file")
    part = path.with_name(f"{path.name}.part")
    with exclusive_lock(path.with_name(f"{path.name}.lock"), what=f"the download of {url}"):
        if path.is_file() and sha256 is not None and file_hash(path) != sha256:
            log(f"{path}: expected SHA-256 {sha256}, found another file; fetching it again")
            path.unlink()
        if not path.is_file():
            for attempt in range(ATTEMPTS):
                try:
                    _fetch(url, part, log)
                    break
                except _BROKEN as error:
                    if attempt + 1 == ATTEMPTS:
                        raise InputError(
                            f"{url}: expected a file, found the connection broken {ATTEMPTS} times ({error}); run "
                            f"again to go on from {part}"
                        ) from error
                    log(f"{url}: {error}; trying again")
                    time.sleep(pause_s * 2**attempt)
            try:
                require_sha256(part, url, sha256)
            except InputError:
                part.unlink()
                raise
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(path)
            _tag_file(part).unlink(missing_ok=True)
    return path


def _tag_file(part: Path) -> Path:
    """Return where the server's name for the version of a part's file is kept."""
    return part.with_name(f"{part.name}.etag")


def _fetch(url: str, part: Path, log: Callable[[str], None]) -> None:
    """Append the missing bytes to a part; start over where the server cannot resume or its file has changed."""
    have = part.stat().st_size if part.is_file() else 0
    tag_file = _tag_file(part)
    tag = tag_file.read_text() if have and tag_file.is_file() else ""
    # A range of another version of the file would be glued to the old one; without a tag nothing can tell.
    resuming = {"Range": f"bytes={have}-", "If-Range": tag} if tag else {}
    headers = {"Accept-Encoding": "identity", **resuming}
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as response:
        if tag and response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            # An earlier download was killed after the last byte and before the renaming: nothing is left to fetch.
            if response.headers.get("Content-Range") == f"bytes */{have}":
                return
            part.unlink()
            raise requests.ConnectionError(f"expected more than {have} bytes, found a shorter file")
        if response.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise requests.ConnectionError(f"expected a file, found status {response.status_code}")
        if response.status_code >= HTTPStatus.BAD_REQUEST:
            raise InputError(f"{url}: expected a file, found status {response.status_code}; correct MEDSAM_TEACHER")
        resumed = response.status_code == HTTPStatus.PARTIAL_CONTENT
        if not resumed:
            # Before the new version has a name: a kill in between must not leave old bytes under it.
            have = 0
            part.unlink(missing_ok=True)
        tag_file.write_text(response.headers.get("ETag", ""))
        total = have + int(response.headers.get("Content-Length", "0"))
        said = have
        with part.open("ab" if resumed else "wb") as file:
            for piece in response.iter_content(PIECE_BYTES):
                file.write(piece)
                have += len(piece)
                if total and (have == total or have - said >= total / 20):
                    said = have
                    log(f"{url}: {have} of {total} bytes")
        if total and have < total:
            raise requests.ConnectionError(f"expected {total} bytes, found the connection closed after {have}")
