"""Verifying the artefacts of a workspace, and withdrawing damaged ones.

What belongs here: these actions on a workspace, and the artefacts that values of assets name. Not here: finding damage
in one artefact (`storage.base.artefact_verification`), making it again, which the next run does.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.base.values import read_content
from pipelines.base.workspace import Workspace
from storage.base.artefact_verification import (
    FolderState,
    artefact_folders,
    verify_folder,
    vouch_for_folder,
    withdraw_folder,
)
from storage.base.blobs import JsonObject
from storage.base.decisions import Decisions
from storage.base.errors import BusyError, IntegrityError

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
    """Yield the name and the value of every asset that was ever materialised; damaged values are left out."""
    folder = workspace.settings.state / "values" / "assets"
    for path in sorted(folder.rglob("*.json")):
        try:
            value = read_content(path, _asset(folder, path))
        except IntegrityError:
            continue
        if isinstance(value, dict):
            yield _asset(folder, path), value


def _asset(folder: Path, path: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def verify_records(workspace: Workspace, log: Log, *, repair: bool) -> list[Damaged]:
    """Read decisions and values of assets, log and return those that are damaged.

    Args:
        workspace: The workspace.
        log: Receives the lines.
        repair: Restore a decision from its copy; remove a damaged value, which the next run writes again.
    """
    folder = workspace.settings.state / "values" / "assets"
    damaged = []
    for record in (workspace.splits, workspace.withdrawn, workspace.adopted):
        problems = record.damages()
        mended = repair and bool(problems) and _restored(record)
        damaged += [Damaged("decisions", name, problem, mended) for name, problem in problems.items()]
    for path in sorted(folder.rglob("*.json")):
        problem = _problem_of_value(path, _asset(folder, path))
        if problem:
            damaged.append(Damaged("values", _asset(folder, path), problem, repair))
            if repair:
                path.unlink()
    log(f"decisions and values: {f'{len(damaged)} damaged' if damaged else 'whole'}")
    for item in damaged:
        log(f"  {item.file}: {item.problem}")
    return damaged


def _problem_of_value(path: Path, name: str) -> str:
    """Return what is wrong with the value of an asset; empty if nothing is."""
    try:
        content = read_content(path, name)
    except IntegrityError as error:
        return str(error)
    return "" if isinstance(content, dict) else f"expected a JSON object in {path}; materialise {name} again"


def _restored(record: Decisions[dict[str, str]] | Decisions[list[str]]) -> bool:
    """Restore a record of decisions from its copy; return whether that could be done."""
    try:
        record.read()
    except IntegrityError:
        return False
    return not record.damages()


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
