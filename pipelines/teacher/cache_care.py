"""Which teacher caches are used and by what, and deleting the others.

What belongs here: the record of use, the listing, deletion. Not here: making caches (`pipelines.teacher.caches`),
verifying them (`pipelines.teacher.cache_verification`).
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines.base.workspace import Workspace
from storage.answers.cache_locks import exclusive_access
from storage.base.atomic import read_json, write_json
from storage.base.blobs import LocalBlobs
from storage.base.errors import BusyError, IntegrityError
from storage.shards.fragments import MANIFEST

KINDS = ("embeddings", "logits")

RECENT_S = 3600.0
"""A cache that was written to within this time is kept: the run that made it may be about to train from it."""

_DELETED = ".deleted"
"""Suffix of a folder that is being deleted; no cache is looked for under such a name."""

_ANY = "*"
"""Stands for every cache of its kind, where the record of which one is used is damaged."""

Log = Callable[[str], None]


def _pin_file(workspace: Workspace, answers: str, user: str) -> Path:
    return workspace.settings.state / "caches" / "pins" / f"{answers}-{user}.json"


def pin(workspace: Workspace, answers: str, user: str, digest: str | None) -> None:
    """Record which cache a variant's answers were last published from; None: they are asked online."""
    _write_pin(workspace, answers, user, {"cache": digest, "planned": None})


def pin_planned(workspace: Workspace, answers: str, user: str, digest: str) -> None:
    """Record that a cache is being made for a variant, beside the one that it uses until then."""
    path = _pin_file(workspace, answers, user)
    recorded = _read_pin(path) if path.is_file() else None
    before = None if recorded is None else recorded["cache"]
    _write_pin(workspace, answers, user, {"cache": before, "planned": digest})


def _write_pin(workspace: Workspace, answers: str, user: str, caches: dict[str, str | None]) -> None:
    write_json(_pin_file(workspace, answers, user), {"answers": answers, "user": user, **caches})


def _pins(workspace: Workspace) -> dict[tuple[str, str], list[str]]:
    """Return (answers, name of the cache's folder) -> who uses it, or is going to."""
    found: dict[tuple[str, str], list[str]] = {}
    for path in sorted(_pin_file(workspace, "", "").parent.glob("*.json")):
        answers, _, user = path.stem.partition("-")
        value = _read_pin(path)
        if value is None:
            found.setdefault((answers, _ANY), []).append(f"{user}, perhaps: {path} is damaged until the next run")
            continue
        for digest in filter(None, {value["cache"], value["planned"]}):
            found.setdefault((answers, digest[:16]), []).append(user)
    return found


def _read_pin(path: Path) -> dict[str, str | None] | None:
    """Return what a record of use says; None if it is damaged."""
    try:
        value = read_json(path)
    except IntegrityError:
        return None
    return value if isinstance(value, dict) and {"cache", "planned"} <= value.keys() else None


def list_caches(workspace: Workspace) -> pd.DataFrame:
    """Return a row for each cache: answers, cache, state, parts, bytes, age_s, pinned_by, folder.

    `state` is `published` or `unfinished`, `age_s` the seconds since something was last written to it.
    """
    pins = _pins(workspace)
    rows = [
        _row(answers, folder, pins)
        for answers in KINDS
        for folder in sorted(workspace.cache_folder(answers).glob("*"))
        if folder.is_dir() and folder.suffix not in (_DELETED, ".locks")
    ]
    columns = ["answers", "cache", "state", "parts", "bytes", "age_s", "pinned_by", "folder"]
    return pd.DataFrame(rows, columns=columns)


def _row(answers: str, folder: Path, pins: dict[tuple[str, str], list[str]]) -> dict[str, Any]:
    sizes = LocalBlobs(folder).sizes()
    newest = max(path.stat().st_mtime for path in (folder, *folder.glob("*.json"), *folder.glob("parts/*")))
    return {
        "answers": answers,
        "cache": folder.name,
        "state": "published" if MANIFEST in sizes else "unfinished",
        "parts": sum(key.startswith("parts/") for key in sizes),
        "bytes": sum(sizes.values()),
        "age_s": time.time() - newest,
        "pinned_by": ", ".join(sorted([*pins.get((answers, folder.name), []), *pins.get((answers, _ANY), [])])),
        "folder": str(folder),
    }


def delete_unused(workspace: Workspace, log: Log, *, dry_run: bool) -> int:
    """Delete the caches that nothing uses, or say which; returns the bytes freed or to be freed.

    A cache is used while a variant's answers were last published from it or are being made for it, while a trainer
    reads it, while a run writes it, and for an hour after that.
    """
    if not dry_run:
        for answers in KINDS:
            for folder in workspace.cache_folder(answers).glob(f"*{_DELETED}"):
                shutil.rmtree(folder)
    freed = 0
    for row in list_caches(workspace).to_dict("records"):
        name = f"{row['answers']} {row['cache']}, {row['state']}, {row['bytes']} bytes"
        if row["pinned_by"]:
            log(f"kept: {name}; used by {row['pinned_by']}")
        elif row["age_s"] < RECENT_S:
            log(f"kept: {name}; written to {row['age_s'] / 60:.0f} minutes ago; caches are kept for an hour after that")
        elif dry_run:
            log(f"unused: {name}")
            freed += int(row["bytes"])
        else:
            freed += _delete(Path(row["folder"]), name, int(row["bytes"]), log)
    return freed


def _delete(folder: Path, name: str, n_bytes: int, log: Log) -> int:
    gone = folder.with_name(folder.name + _DELETED)
    try:
        with exclusive_access(LocalBlobs(folder)):
            # Renamed first, so that an interrupted deletion leaves no half of a cache under its name.
            folder.rename(gone)
            shutil.rmtree(gone)
            shutil.rmtree(folder.with_name(f"{folder.name}.locks"), ignore_errors=True)
    except BusyError as error:
        log(f"kept: {name}; {error}")
        return 0
    log(f"deleted: {name}")
    return n_bytes
