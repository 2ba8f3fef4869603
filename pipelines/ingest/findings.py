"""What a scan found, as the log and the page tell it.

What belongs here: counts of everything found by what became of it, how the map of patients fits, what speaks for a
mistake of the whole data set. Not here: scanning (`pipelines.ingest.scanning`), what stops it
(`storage.sources.losses`).
"""

from pathlib import Path

import pandas as pd

from pipelines.base.profile import SourceSettings
from pipelines.base.terminal import printable
from pipelines.ingest.spacing_evidence import spacing_warning
from storage.sources.manifest_table import counts_by_modality, rejected
from storage.sources.npz_listing import NO_NPZ
from storage.sources.patient_map import PatientMap
from storage.sources.raw_manifest import Scan

_ONE_FILE = (
    "put imgs and gts of a case into one npz file (np.savez_compressed(file, imgs=..., gts=...)); give its folder"
)

_SHOWN = 200
"""Rows, names and letters that are shown of a list."""


def findings(found: Scan, source: SourceSettings) -> list[str]:
    """Say what was found, taken, rejected and skipped, how the map of patients fits, and what speaks for a mistake."""
    lines = [closing_line(found), *_by_folder(found)]
    lines += [f"{name}: {value}" for name, value in _without_gts(found, source).items()]
    lines += [f"rejected, {code}: {count}" for code, count in _reasons(found.table).items()]
    for row in found.skipped.to_dict("records"):
        where = f" in {row['folder']}" if "folder" in row else ""
        lines.append(
            f"skipped{where}, {row['reason']}: {row['count']}, such as {printable(str(row['examples']))[:_SHOWN]}"
        )
    if found.patients is not None:
        lines += [f"map of patients: {name}: {value}" for name, value in _fit(found.patients).items()]
    return lines + warnings(found.table, source.spacing_order)


def closing_line(found: Scan) -> str:
    """Return everything found, by what became of it."""
    n_accepted, n_skipped = int((found.table["status"] == "accepted").sum()), int(found.skipped["count"].sum())
    n_rejected = len(found.table) - n_accepted
    total = len(found.table) + n_skipped
    return f"{total} files found: {n_accepted} accepted, {n_skipped} skipped, {n_rejected} rejected"


def _by_folder(found: Scan) -> list[str]:
    """Return for each of several folders what became of its files, and what came from each role in all."""
    if found.folders is None:
        return []
    lines = [
        f"{row.folder} ({row.role}): {row.found} files found: {row.accepted} accepted, {row.skipped} skipped, "
        f"{row.rejected} rejected"
        for row in found.folders.itertuples()
    ]
    by_role = found.folders.groupby("role")["accepted"].sum()
    return [*lines, "accepted by role: " + ", ".join(f"{role} {count}" for role, count in by_role.items())]


def _without_gts(found: Scan, source: SourceSettings) -> dict[str, str]:
    """Say how many accepted files have no labels, and what becomes of them; nothing if there are none."""
    count = int(((found.table["status"] == "accepted") & ~found.table["has_gts"]).sum())
    use = "distillation alone draws them" if source.unlabelled else "nothing uses them: source.unlabelled is off"
    return {"accepted without gts": f"{count}, {use}"} if count else {}


def notes(found: Scan, source: SourceSettings) -> dict[str, str | pd.DataFrame]:
    """Return what the page shows of a scan."""
    refused = rejected(found.table)
    fit = {f"map of patients: {name}": value for name, value in _fit(found.patients).items()} if found.patients else {}
    return {
        "files": closing_line(found),
        **({} if found.folders is None else {"by folder": found.folders}),
        **_without_gts(found, source),
        "warnings": "\n".join(warnings(found.table, source.spacing_order)) or "none",
        "by modality": counts_by_modality(found.table),
        "rejections by reason": ", ".join(f"{code} {count}" for code, count in _reasons(found.table).items()) or "none",
        "rejections": refused.head(_SHOWN) if len(refused) else "none",
        "skipped": found.skipped if len(found.skipped) else "none",
        **fit,
    }


def warnings(table: pd.DataFrame, spacing_order: str) -> list[str]:
    """Return what of a manifest speaks for a mistake of the whole data set, one line each."""
    accepted = table[table["status"] == "accepted"]
    other = "xyz" if spacing_order == "zyx" else "zyx"
    spacing = spacing_warning(accepted, spacing_order, f"set source.spacing_order: {other} in the profile")
    return [warning for warning in (spacing, two_files_warning(table)) if warning]


def two_files_warning(table: pd.DataFrame) -> str | None:
    """Return what to tell of images and labels that lie in files of their own; None if they do not.

    Args:
        table: A manifest: case_id, status, has_gts, reason_code, reason.
    """
    without_gts = table.loc[(table["status"] == "accepted") & ~table["has_gts"], "case_id"].astype(str)
    only_gts = (table["reason_code"] == "missing_imgs") & table["reason"].str.contains("'gts.npy'", regex=False)
    without_imgs = table.loc[only_gts, "case_id"].astype(str)
    if without_gts.empty or without_imgs.empty:
        return None
    shared = {Path(name).name for name in without_gts} & {Path(name).name for name in without_imgs}
    if shared:
        return (
            f"warning: imgs and gts of {len(shared)} cases lie in separate files of one name, such as "
            f"{printable(min(shared))}: {_ONE_FILE}"
        )
    return (
        f"warning: {len(without_gts)} files hold imgs and no gts, {len(without_imgs)} hold gts and no imgs, such as "
        f"{printable(without_gts.iloc[0])} and {printable(without_imgs.iloc[0])}: {_ONE_FILE}"
    )


def other_format(skipped: pd.DataFrame) -> str | None:
    """Return what to do about arrays that lie in npy files, as MedSAM's own preparation writes; None without any.

    Args:
        skipped: What a source skipped: reason, count, examples.
    """
    npy = skipped[skipped["reason"] == f"{NO_NPZ}: *.npy"]
    return f"{int(npy['count'].sum())} arrays lie in npy files of their own: {_ONE_FILE}" if len(npy) else None


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
