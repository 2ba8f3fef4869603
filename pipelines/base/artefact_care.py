"""Keeping artefacts sound: verifying every byte of all of them, withdrawing what is damaged.

What belongs here: these acts over a workspace, what assets' values name. Not here: what damage is
(`storage.base.artefact_verification`), making again, which the next run does.
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
    """A file that is not what it should be.

    Attributes:
        what: The store, cache or artefact it belongs to.
        file: Its path there.
        problem: What was expected and found.
        mended: Whether it was repaired, or withdrawn so that the next run makes it again.
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
    """Verify every artefact, saying in a line what was found of each, and return what is damaged.

    Args:
        workspace: Where everything lies.
        log: Where it is said.
        repair: Withdraw damaged ones, and vouch for those of an earlier version as they are.
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
        return "made before file hashes were kept, nothing to compare with; `medsam verify --repair` records them"
    if found.state == "unfinished":
        return "unfinished"
    state = f"{len(found.damages)} damaged" if found.damages else "whole"
    return f"{found.n_files} files, {found.n_bytes} bytes, {state}"


def _mended(found: FolderState, log: Log) -> bool:
    """Do what can be done about a folder; returns whether nothing damaged is left there."""
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
    """Yield the artefacts that an asset's value names and that are not there."""
    for asset, value in asset_values(workspace):
        kind, digest = value.get("kind"), value.get("fingerprint")
        if kind and digest and f"{kind} {digest[:16]}" not in finished:
            problem = "expected a finished result, found none; the next run makes it"
            log(f"{asset}: {kind} {digest[:16]}: {problem}")
            yield Damaged(f"{kind} {digest[:16]}", "", problem)
