"""Keeping teacher caches in hand: which are used, by what, and deleting the others.

What belongs here: the record of use, the listing, deletion. Not here: making caches (`pipelines.tasks.caches`).
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from pipelines.workspace import Workspace
from storage.atomic import read_json, write_json
from storage.blobs import LocalBlobs
from storage.errors import BusyError

KINDS = ("embeddings", "logits")

Log = Callable[[str], None]


def _pins_folder(workspace: Workspace) -> Path:
    return workspace.settings.state / "caches" / "pins"


def pin(workspace: Workspace, answers: str, user: str, digest: str | None) -> None:
    """Record which cache a variant's answers were last published from; None: they are asked online."""
    write_json(_pins_folder(workspace) / f"{answers}-{user}.json", {"answers": answers, "user": user, "cache": digest})


def _pins(workspace: Workspace) -> dict[tuple[str, str], list[str]]:
    """Return (answers, name of the cache's folder) -> who uses it."""
    found: dict[tuple[str, str], list[str]] = {}
    for path in sorted(_pins_folder(workspace).glob("*.json")):
        value = read_json(path)
        if value["cache"] is not None:
            found.setdefault((value["answers"], value["cache"][:16]), []).append(value["user"])
    return found


def list_caches(workspace: Workspace) -> pd.DataFrame:
    """Return a row for each cache: answers, cache, state, slots, bytes, pinned_by, folder."""
    pins = _pins(workspace)
    rows = []
    for answers in KINDS:
        for header in sorted(workspace.cache_folder(answers).glob("*/header.json")):
            folder = header.parent
            rows.append(
                {
                    "answers": answers,
                    "cache": folder.name,
                    "state": "published" if (folder / "manifest.json").is_file() else "unfinished",
                    "slots": read_json(header)["n_slots"],
                    "bytes": sum(LocalBlobs(folder).sizes().values()),
                    "pinned_by": ", ".join(pins.get((answers, folder.name), [])),
                    "folder": str(folder),
                }
            )
    columns = ["answers", "cache", "state", "slots", "bytes", "pinned_by", "folder"]
    return pd.DataFrame(rows, columns=columns)


def delete_unused(workspace: Workspace, log: Log, *, dry_run: bool) -> int:
    """Delete the caches that nothing uses, or say which; returns the bytes freed or to be freed.

    A cache is used while a variant's answers were last published from it, while a trainer reads it, and while a run
    writes it.
    """
    freed = 0
    for row in list_caches(workspace).to_dict("records"):
        name = f"{row['answers']} {row['cache']}, {row['state']}, {row['bytes']} bytes"
        if row["pinned_by"]:
            log(f"kept: {name}; used by {row['pinned_by']}")
        elif dry_run:
            log(f"unused: {name}")
            freed += int(row["bytes"])
        else:
            folder = Path(row["folder"])
            try:
                with LocalBlobs(folder).exclusive(f"the teacher cache in {folder}"):
                    # Without its manifest nobody opens it, also when deletion is cut short.
                    (folder / "manifest.json").unlink(missing_ok=True)
                    shutil.rmtree(folder)
                    shutil.rmtree(folder.with_name(f"{folder.name}.locks"), ignore_errors=True)
            except BusyError as error:
                log(f"kept: {name}; {error}")
                continue
            log(f"deleted: {name}")
            freed += int(row["bytes"])
    return freed
