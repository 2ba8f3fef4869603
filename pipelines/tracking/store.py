"""MLflow's store. What belongs here: checking its server or file, and correcting it after its folder has moved.

Not here: logging runs and models (`pipelines.tracking.tracker`). A run checks the store before its first step, so
MLflow, which loads slowly, is not imported here.
"""

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import requests

from pipelines.base.settings import InputError

TIMEOUT_S = 5.0
"""Seconds to wait for an answer of the server, and for another process that holds the file."""

_SQLITE = "sqlite:///"


class TrackingError(InputError):
    """MLflow cannot be used; the message names the store and says what to do."""


def shown(uri: str) -> str:
    """Return the address of a store, with its password hidden."""
    parts = urlsplit(uri)
    return uri.replace(f":{parts.password}@", ":***@") if parts.password else uri


def sqlite_file(uri: str) -> Path | None:
    """Return the sqlite file of a store, or None if the store is no sqlite file."""
    path = unquote(uri.removeprefix(_SQLITE).partition("?")[0])
    return Path(path) if uri.startswith(_SQLITE) and path not in ("", ":memory:") else None


def local_path(uri: str) -> Path:
    """Return the path that a `file:` URI names."""
    return Path(unquote(urlsplit(uri).path))


def require_tracking(uri: str) -> None:
    """Refuse a store that cannot be used now.

    Raises:
        TrackingError: If no server answers within a few seconds, or the file cannot be written.
    """
    if uri.startswith(("http://", "https://")):
        _require_server(uri)
    file = sqlite_file(uri)
    if file is not None and file.exists():
        _require_writable(file)


def _require_server(uri: str) -> None:
    verify = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() not in ("true", "1")
    try:
        with requests.get(f"{uri.rstrip('/')}/health", timeout=TIMEOUT_S, verify=verify, stream=True) as response:
            status = response.status_code
    except (requests.RequestException, ValueError) as error:
        found = "no answer in time" if isinstance(error, requests.Timeout) else "no connection"
        raise TrackingError(_dead(uri, found)) from error
    # 404: a server without this page; 401: a server that requires a login; 502 to 504: a proxy without its server.
    if status in range(502, 505):
        raise TrackingError(_dead(uri, f"status {status}"))


def _dead(uri: str, found: str) -> str:
    return (
        f"MLFLOW_TRACKING_URI: expected an MLflow server at {shown(uri)}, found {found}; start it or correct the "
        "address, or unset the variable to keep runs in a file of MEDSAM_HOME"
    )


def _require_writable(file: Path) -> None:
    try:
        with closing(sqlite3.connect(f"file:{quote(str(file))}?mode=rw", uri=True, timeout=TIMEOUT_S)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            database.rollback()
        if not os.access(file, os.W_OK) or not os.access(file.parent, os.W_OK):
            raise sqlite3.OperationalError("attempt to write a readonly database")
    except sqlite3.Error as error:
        remedy = (
            "wait for the process that holds it, or stop it"
            if "locked" in str(error)
            else "let this user write it and its folder, or move a damaged file away"
        )
        raise TrackingError(f"{file}: expected MLflow's database, found: {error}; {remedy}, then run again") from error


_ARTEFACT_COLUMNS = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "model_versions": ("source", "storage_location"),
}


def follow_move(uri: str) -> int:
    """Correct the addresses of artefacts in a database that has moved with its folder; MLflow stores absolute paths.

    Args:
        uri: Address of a store; only a sqlite file beside its folder of artefacts can have moved.

    Returns:
        The number of corrected entries.

    Raises:
        TrackingError: If the file cannot be read or written.
    """
    file = sqlite_file(uri)
    artefacts = Path() if file is None else file.parent / "artifacts"
    if file is None or not file.is_file() or not artefacts.is_dir():
        return 0
    try:
        with closing(sqlite3.connect(file, timeout=TIMEOUT_S)) as database, database:
            return sum(_replace(database, old, artefacts.as_uri()) for old in _moved(database, artefacts))
    except sqlite3.Error as error:
        raise TrackingError(f"{file}: expected MLflow's database, found: {error}; let this user write it") from error


def _moved(database: sqlite3.Connection, artefacts: Path) -> list[str]:
    """Return the old addresses whose artefacts lie in this folder now, or are missing."""
    tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables.issuperset(_ARTEFACT_COLUMNS):
        return []
    ending = f"/{artefacts.parent.name}/{artefacts.name}"
    locations = [old or "" for (old,) in database.execute("SELECT DISTINCT artifact_location FROM experiments")]
    moved = []
    for old in locations:
        if not old.startswith("file:") or not old.endswith(ending) or old == artefacts.as_uri():
            continue
        uris = [str(uri) for (uri,) in database.execute("SELECT artifact_uri FROM runs WHERE artifact_uri IS NOT NULL")]
        names = {uri.removeprefix(f"{old}/").partition("/")[0] for uri in uris if uri.startswith(f"{old}/")}
        # Another state folder that shares this file keeps its own artefacts.
        if any((artefacts / name).is_dir() for name in names) or not local_path(old).is_dir():
            moved.append(old)
    return moved


def _replace(database: sqlite3.Connection, old: str, new: str) -> int:
    """Replace the beginning of every address of artefacts; return the number of changed entries."""
    count = 0
    for table, columns in _ARTEFACT_COLUMNS.items():
        for column in columns:
            # The names are constants of this module; the paths are bound.
            statement = (
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608
                f"WHERE {column} = ? OR substr({column}, 1, ?) = ?"
            )
            values = (new, len(old) + 1, old, len(old) + 1, f"{old}/")
            count += database.execute(statement, values).rowcount
    return count
