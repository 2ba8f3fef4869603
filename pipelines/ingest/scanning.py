"""From a place that holds cases to the raw manifest.

What belongs here: which source a profile means, scanning it, what stops it. Not here: what is told of a scan
(`pipelines.ingest.findings`), what a manifest is (`storage.sources.raw_manifest`), slice stores
(`pipelines.ingest.tasks`).
"""

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import pandas as pd

from pipelines.base.data_folders import DataFolder
from pipelines.base.profile import Profile
from pipelines.base.results import TaskResult
from pipelines.base.settings import InputError
from pipelines.base.workspace import Workspace
from pipelines.ingest.findings import findings, notes, other_format, two_files_warning
from storage.base.artefacts import Artefact
from storage.base.atomic import write_parquet
from storage.base.references import ArtefactRef
from storage.sources.folders import Folder, Folders, require_apart
from storage.sources.kinds import open_source
from storage.sources.losses import require_kept
from storage.sources.manifest_table import manifest_fingerprint, rejected, with_places
from storage.sources.raw_manifest import ReadLimits, Scan, scan
from storage.sources.source import Source, SourceConfig

Log = Callable[[str], None]

_ACCEPT = "Mount or restore what is missing and run again; if the loss is meant, set MEDSAM_ACCEPT_LOSS=1 for one run"
_NO_FILES = "Nothing can be made of no files: mount the folder or correct MEDSAM_DATA, and run again"
_NO_GOOD_FILES = "Nothing can be made of these files: mend them or correct MEDSAM_DATA, and run again"


def source_at(root: Path, profile: Profile) -> Source:
    """Return a place as a source that is read as a profile says."""
    settings = profile.source
    config = SourceConfig(spacing_order=settings.spacing_order, max_case_bytes=settings.max_case_bytes)
    return open_source(settings.kind, root, config)


def source_of(workspace: Workspace, log: Log, case_ids: Collection[str] = ()) -> Source:
    """Return the source of a workspace: its folder, or its folders as one.

    Args:
        workspace: Where everything lies.
        log: Where a damaged record of the last scan is told.
        case_ids: Cases that are to be read without listing the source first; the last scan says which folder has them.

    Raises:
        StorageError: If a folder is another, or lies in it.
    """
    settings = workspace.settings
    if len(settings.folders) == 1:
        return source_at(settings.data, workspace.profile)
    require_apart([folder.path for folder in settings.folders])
    folders = [
        Folder(source_at(folder.path, workspace.profile), folder.role, groups_csv)
        for folder, groups_csv in zip(settings.folders, settings.maps, strict=True)
    ]
    last = last_scan(workspace, log) if case_ids else None
    if last is None:
        return Folders(folders, {})
    # Only these: the source is sent to every process that reads.
    rows = with_places(last[last["case_id"].isin(case_ids)])
    return Folders(folders, dict(zip(rows["case_id"], rows["folder"], strict=True)))


def make_sample(workspace: Workspace, log: Log) -> int:
    """Write the synthetic data set, if the profile's source is synthetic; existing identical files are kept."""
    from medsam_core.synthetic import write_sample

    source = workspace.profile.source
    count = write_sample(
        workspace.settings.data,
        seed=source.synthetic_seed,
        cases_per_modality=source.synthetic_cases,
        volumes_per_modality=source.synthetic_volumes,
    )
    log(f"synthetic data: {count} files in {workspace.settings.data}")
    return count


def scan_source(workspace: Workspace, log: Log) -> TaskResult[ArtefactRef]:
    """Find and check every case; a bad one is rejected with a reason and stops nothing.

    Raises:
        FileNotFoundError: If the source folder is not there.
        InputError: If no case is any good.
        LossError: If half or more of what the last scan found is lost, or a whole folder, unless the settings accept
            that.
    """
    if workspace.profile.source.kind == "synthetic":
        make_sample(workspace, log)
    _require_folders(workspace.settings.folders)
    before = last_scan(workspace, log)
    source = source_of(workspace, log)
    place = ", ".join(str(folder.path) for folder in workspace.settings.folders)
    found = _scan(workspace, source, before, log)
    told = findings(found, workspace.profile.source)
    for line in told:
        log(line)
    if not workspace.settings.accept_loss and before is not None:
        before = before[~before["case_id"].isin(workspace.withdrawn.read() or ())]
        require_kept(before, found.table, place, _ACCEPT if _usable(found.table) else _NO_FILES)
    _require_cases(found, told, place)
    write_parquet(workspace.scan_file, found.table)
    workspace.unfinished_scan_file.unlink(missing_ok=True)
    made = _manifest_artefact(workspace, found.table)
    shown = {**made.info, **notes(found, workspace.profile.source), "all rejections": made.path / "rejected.csv"}
    return TaskResult(made.reference(), made.fingerprint, int(not made.reused), int(made.reused), shown)


def _require_folders(folders: Sequence[DataFolder]) -> None:
    """Refuse to scan while a folder is not there.

    Raises:
        FileNotFoundError: Naming those that are not.
    """
    missing = [str(folder.path) for folder in folders if not folder.path.is_dir()]
    if not missing:
        return
    several = f"; in a list of folders no path may hold {os.pathsep!r}" if len(folders) > 1 else ""
    raise FileNotFoundError(
        f"MEDSAM_DATA: expected a folder of npz files, found none at {', '.join(missing)}; set it, then run "
        f"again{several}"
    )


def last_scan(workspace: Workspace, log: Log) -> pd.DataFrame | None:
    """Return what the last scan found; where its record is damaged, the newest manifest. None before the first scan."""
    if not workspace.scan_file.is_file():
        return None
    manifests = (workspace.settings.state / "artefacts" / "manifest").glob("*/manifest.parquet")
    newest = sorted(manifests, key=lambda path: path.stat().st_mtime_ns, reverse=True)
    tables = (_table(path, log) for path in (workspace.scan_file, *newest))
    return next((table for table in tables if table is not None), None)


def _table(path: Path, log: Log) -> pd.DataFrame | None:
    """Return a table of cases; None if it is not there, or damaged, which costs no more than reading files again."""
    try:
        table = pd.read_parquet(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log(f"{path} is damaged and not used: {error}")
        return None
    return table if {"case_id", "modality", "status"} <= set(table.columns) else None


def _scan(workspace: Workspace, source: Source, before: pd.DataFrame | None, log: Log) -> Scan:
    """Scan, going on where a scan was stopped; what was read is kept apart until it is judged as a whole."""
    known = [table for table in (_table(workspace.unfinished_scan_file, log), before) if table is not None]

    def progress(done: int, total: int) -> None:
        if done == total or done % 1000 == 0:
            log(f"scanned {done} of {total} files")

    def keep(table: pd.DataFrame) -> None:
        write_parquet(workspace.unfinished_scan_file, table)

    found = scan(
        source,
        workspace.settings.groups_csv,
        pd.concat(known, ignore_index=True) if known else None,
        limits=ReadLimits(workspace.settings.workers, workspace.settings.memory_bytes),
        withdrawn=workspace.withdrawn.read() or (),
        progress=progress,
        checkpoint=keep,
    )
    keep(found.table)
    return found


def _usable(table: pd.DataFrame) -> bool:
    """Return whether a manifest has a case to go on with; a withdrawn one was good when it was withdrawn."""
    return bool((table["status"] == "accepted").any() or (table["reason_code"] == "withdrawn").any())


def _require_cases(found: Scan, told: list[str], place: str) -> None:
    """Refuse a source without a single good case; `told` is what was found, its first line the counts.

    Raises:
        InputError: With what was found instead.
    """
    table = found.table
    apart = two_files_warning(table)
    if apart and not table["has_gts"].any():
        raise InputError(f"{place}: expected cases with gts, found none: {apart.removeprefix('warning: ')}; {told[0]}")
    if _usable(table):
        return
    refused = rejected(table)
    instead = "; ".join(told[1:]) or "nothing"
    examples = [f"{row.case_id}: {row.reason}" for row in refused.head(3).itertuples()]
    remedy = _NO_GOOD_FILES if len(table) else other_format(found.skipped) or _NO_FILES
    raise InputError(
        "\n  ".join([f"{place}: expected cases, found none that can be used: {instead}. {remedy}", *examples])
    )


def _manifest_artefact(workspace: Workspace, table: pd.DataFrame) -> Artefact:
    def build(folder: Path) -> dict[str, int]:
        write_parquet(folder / "manifest.parquet", table)
        rejected(table).to_csv(folder / "rejected.csv", index=False)
        accepted = int((table["status"] == "accepted").sum())
        return {"found": len(table), "accepted": accepted, "rejected": len(table) - accepted}

    return workspace.artefacts.make("manifest", {"files": manifest_fingerprint(table)}, build)
