"""Verifying teacher caches, and withdrawing what is damaged so that the next run makes it again.

What belongs here: verification and repair of the caches of a workspace. Not here: what damage is
(`storage.answers.cache_verification`), which caches there are and what uses them (`pipelines.teacher.cache_care`).
"""

from collections.abc import Callable, Collection
from pathlib import Path

from pipelines.base.artefact_care import Damaged, asset_values
from pipelines.base.progress import ByteProgress
from pipelines.base.workspace import Workspace
from pipelines.teacher.cache_care import list_caches
from storage.answers.cache_verification import verify_cache, withdraw_cache
from storage.base.blobs import LocalBlobs
from storage.base.errors import BusyError, StorageError
from storage.shards.fragments import MANIFEST
from storage.shards.verification import Comparison

Log = Callable[[str], None]


def verify_caches(
    workspace: Workspace, log: Log, *, repair: bool, names: Collection[str] | None = None
) -> list[Damaged]:
    """Verify every byte of published caches, log one line for each, and return what is damaged.

    Args:
        workspace: Where everything lies.
        log: Receives the lines.
        repair: Withdraw the damaged parts, which the next run makes again.
        names: Which caches, by folder name; None: all. One that is missing is damage.
    """
    used = {
        (value["answers"], value["cache"][:16]) for _, value in asset_values(workspace) if value.get("mode") == "cached"
    }
    damaged: list[Damaged] = []
    rows = list_caches(workspace).to_dict("records")
    for missing in sorted(set(names or ()) - {row["cache"] for row in rows}):
        log(f"teacher cache {missing}: not there")
        damaged.append(Damaged(f"teacher cache {missing}", "", "expected a cache, found none; the next run makes it"))
    for row in rows:
        if names is not None and row["cache"] not in names:
            continue
        name, root = f"teacher_{row['answers']} {row['cache']}", LocalBlobs(Path(row["folder"]))
        if row["state"] == "published":
            damaged += _verified(root, name, log, repair=repair)
            continue
        log(f"{name}: not published")
        if (row["answers"], row["cache"]) in used:
            damaged.append(Damaged(name, MANIFEST, "expected a published cache, found none; the next run publishes it"))
    return damaged


def _verified(root: LocalBlobs, name: str, log: Log, *, repair: bool) -> list[Damaged]:
    try:
        found = verify_cache(root, ByteProgress(name, log))
    except StorageError as error:
        log(f"{name}: {error}")
        return [Damaged(name, "", str(error))]
    state = f"{len(found.damages)} damaged" if found.damages else "whole"
    log(f"{name}: {found.n_blobs} files, {found.n_bytes} bytes, {state}, {len(found.unnamed)} left over")
    for damage in found.damages:
        log(f"  {damage.key}: {damage.problem}")
    mended = repair and bool(found.damages) and _withdrawn(root, found, log)
    return [Damaged(name, damage.key, damage.problem, mended) for damage in found.damages]


def _withdrawn(root: LocalBlobs, found: Comparison, log: Log) -> bool:
    try:
        part_ids = withdraw_cache(root, found)
    except BusyError as error:
        log(f"  left as it is: {error}")
        return False
    log(f"  withdrawn; the next run makes {len(part_ids)} parts again and publishes: {', '.join(part_ids) or 'none'}")
    return True
