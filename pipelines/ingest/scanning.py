"""From a place that holds cases to the raw manifest.

What belongs here: which source a profile means, scanning it, what the page shows of a scan. Not here: what a manifest
is (`storage.sources.raw_manifest`), slice stores (`pipelines.ingest.tasks`).
"""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from pipelines.base.profile import Profile
from pipelines.base.results import TaskResult
from pipelines.base.settings import InputError
from pipelines.base.workspace import Workspace
from storage.base.artefacts import Artefact
from storage.base.atomic import write_parquet
from storage.base.references import ArtefactRef
from storage.sources.kinds import open_source
from storage.sources.losses import require_kept
from storage.sources.manifest_table import counts_by_modality, manifest_fingerprint, rejected
from storage.sources.patient_map import PatientMap
from storage.sources.raw_manifest import ReadLimits, Scan, scan
from storage.sources.source import Source, SourceConfig

Log = Callable[[str], None]

_SHOWN = 200
"""Rows and names that the page shows of a list."""


def source_at(root: Path, profile: Profile) -> Source:
    """Return a place as a source that is read as a profile says."""
    settings = profile.source
    config = SourceConfig(spacing_order=settings.spacing_order, max_case_bytes=settings.max_case_bytes)
    return open_source(settings.kind, root, config)


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
        LossError: If half or more of what the last scan found is lost, unless the settings accept that.
    """
    data = workspace.settings.data
    if workspace.profile.source.kind == "synthetic":
        make_sample(workspace, log)
    if not data.is_dir():
        raise FileNotFoundError(
            f"MEDSAM_DATA: expected a folder of npz files, found none at {data}; set it, then run again"
        )
    before = last_scan(workspace, log)
    found = _scan(workspace, source_at(data, workspace.profile), before, log)
    for line in _findings(found):
        log(line)
    if not workspace.settings.accept_loss:
        if before is not None:
            before = before[~before["case_id"].isin(workspace.withdrawn.read() or ())]
            require_kept(before, found.table, str(data), "if the loss is meant, set MEDSAM_ACCEPT_LOSS=1 for one run")
        _require_cases(found, data)
    write_parquet(workspace.scan_file, found.table)
    workspace.unfinished_scan_file.unlink(missing_ok=True)
    made = _manifest_artefact(workspace, found.table)
    notes = {**made.info, **_notes(found), "all rejections": made.path / "rejected.csv"}
    return TaskResult(made.reference(), made.fingerprint, int(not made.reused), int(made.reused), notes)


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


def _findings(found: Scan) -> list[str]:
    """Say what was found, taken, rejected and skipped, and how the map of patients fits."""
    status = found.table["status"].value_counts()
    lines = [f"{len(found.table)} files: {status.get('accepted', 0)} accepted, {status.get('rejected', 0)} rejected"]
    lines += [f"rejected, {code}: {count}" for code, count in _reasons(found.table).items()]
    for row in found.skipped.to_dict("records"):
        lines.append(f"skipped, {row['reason']}: {row['count']}, such as {str(row['examples'])[:_SHOWN]}")
    if found.patients is not None:
        lines += [f"map of patients: {name}: {value}" for name, value in _fit(found.patients).items()]
    return lines


def _reasons(table: pd.DataFrame) -> dict[str, int]:
    counts = rejected(table)["reason_code"].value_counts()
    return {str(code): int(count) for code, count in counts.items()}


def _fit(patients: PatientMap) -> dict[str, str]:
    """Say how a map of patients fits, and name what does not."""

    def named(names: tuple[str, ...]) -> str:
        return f"{len(names)}, such as {', '.join(names[:20])}" if names else "none"

    return {
        "rows that name a file": str(len(patients.by_case)),
        "rows that name no file": named(patients.without_file),
        "files without a row, each its own patient": named(patients.without_row),
    }


def _require_cases(found: Scan, data: Path) -> None:
    """Refuse a source without a single good case.

    Raises:
        InputError: With what was found instead.
    """
    if (found.table["status"] == "accepted").any() or (found.table["reason_code"] == "withdrawn").any():
        return
    refused = rejected(found.table)
    instead = "; ".join(_findings(found)[1:]) or "nothing"
    examples = [f"{row.case_id}: {row.reason}" for row in refused.head(3).itertuples()]
    raise InputError("\n  ".join([f"{data}: expected cases, found none that can be used: {instead}", *examples]))


def _manifest_artefact(workspace: Workspace, table: pd.DataFrame) -> Artefact:
    def build(folder: Path) -> dict[str, int]:
        write_parquet(folder / "manifest.parquet", table)
        rejected(table).to_csv(folder / "rejected.csv", index=False)
        accepted = int((table["status"] == "accepted").sum())
        return {"found": len(table), "accepted": accepted, "rejected": len(table) - accepted}

    return workspace.artefacts.make("manifest", {"files": manifest_fingerprint(table)}, build)


def _notes(found: Scan) -> dict[str, str | pd.DataFrame]:
    refused = rejected(found.table)
    fit = {f"map of patients: {name}": value for name, value in _fit(found.patients).items()} if found.patients else {}
    return {
        "by modality": counts_by_modality(found.table),
        "rejections by reason": ", ".join(f"{code} {count}" for code, count in _reasons(found.table).items()) or "none",
        "rejections": refused.head(_SHOWN) if len(refused) else "none",
        "skipped": found.skipped if len(found.skipped) else "none",
        **fit,
    }
