"""Verifying the artefacts of a workspace, and withdrawing damaged ones.

What belongs here: these actions on a workspace, and the artefacts that values of assets name. Not here: finding damage
in one artefact (`storage.base.artefact_verification`), making it again, which the next run does.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipelines.base.workspace import Workspace
from storage.base.artefact_verification import (
    FolderState,
    artefact_folders,
    verify_folder,
    vouch_for_folder,
    withdraw_folder,
)
from storage.base.atomic import read_json
from storage.base.blobs import JsonObject
from storage.base.errors import BusyError, IntegrityError

logger = logging.getLogger(__name__)

Log = Callable[[str], None]


@dataclass(frozen=True)
class Damaged:
    """A damaged file.

    Attributes:
        what: The store, cache or artefact that the file belongs to.
        file: Its path there.
        problem: What was expected and what was found.
        mended: True if it was repaired, or withdrawn so that the next run makes it again.
    """

    what: str
    file: str
    problem: str
    mended: bool = False


def asset_values(workspace: Workspace) -> Iterator[tuple[str, JsonObject]]:
    """Yield the name and the value of every asset that was ever materialised; unreadable ones are named in the log."""
    folder = workspace.settings.state / "values" / "assets"
    for path in sorted(folder.rglob("*.json")):
        try:
            value = read_json(path)
        except IntegrityError as error:
            logger.warning("%s", error)
            continue
        if isinstance(value, dict):
            yield path.relative_to(folder).with_suffix("").as_posix(), value


def verify_artefacts(workspace: Workspace, log: Log, *, repair: bool) -> list[Damaged]:
    """Verify every artefact, log one line for each, and return the damaged files.

    Args:
        workspace: The workspace.
        log: Receives the lines.
        repair: Withdraw damaged artefacts, and record the present hashes of artefacts of an earlier version.
    """
    damaged: list[Damaged] = []
    finished = set()
    for kind, folder in artefact_folders(workspace.artefacts.root):
        found = verify_folder(kind, folder)
        log(f"{found.name}: {_said(found)}")
        for name, problem in found.damages.items():
            log(f"  {name}: {problem}")
        mended = repair and _mended(found, log)
        damaged += [Damaged(found.name, name, problem, mended) for name, problem in found.damages.items()]
        if found.state != "unfinished":
            finished.add(found.name)
    return damaged + list(_gone(workspace, finished, log))


def _said(found: FolderState) -> str:
    if found.state == "unvouched":
        return "made before file hashes were recorded, not compared; `medsam verify --repair` records them"
    if found.state == "unfinished":
        return "unfinished"
    state = f"{len(found.damages)} damaged" if found.damages else "whole"
    return f"{found.n_files} files, {found.n_bytes} bytes, {state}"


def _mended(found: FolderState, log: Log) -> bool:
    """Repair or withdraw the artefact in a folder; return whether no damage is left."""
    try:
        if found.state == "unvouched":
            vouch_for_folder(found)
            log("  hashes of its files recorded")
        if found.state == "damaged":
            kept = withdraw_folder(found)
            log(f"  withdrawn, {len(kept)} files stay; the next run makes it again")
    except BusyError as error:
        log(f"  left as it is: {error}")
        return False
    return True


def _gone(workspace: Workspace, finished: set[str], log: Log) -> Iterator[Damaged]:
    """Yield the artefacts that an asset's value names but that are missing."""
    for asset, value in asset_values(workspace):
        kind, digest = value.get("kind"), value.get("fingerprint")
        if kind and digest and f"{kind} {digest[:16]}" not in finished:
            problem = "expected a finished result, found none; the next run makes it"
            log(f"{asset}: {kind} {digest[:16]}: {problem}")
            yield Damaged(f"{kind} {digest[:16]}", "", problem)
