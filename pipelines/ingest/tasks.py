"""From the raw manifest to slice stores and their index.

What belongs here: calls into `storage` in the order of the flow, and what the page shows of them. Not here: formats.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pipelines.base import pictures
from pipelines.base.results import Picture, TaskResult
from pipelines.base.values import StorePartsMade, StoreRef
from pipelines.base.workspace import Workspace
from pipelines.ingest.part_writing import LostCases, process_count, write_parts
from pipelines.ingest.scanning import source_of
from storage.base.atomic import write_parquet
from storage.base.errors import StorageError
from storage.base.modalities import MODALITIES
from storage.base.references import ArtefactRef
from storage.releases.columns import SliceColumns
from storage.releases.reader import ReleaseReader
from storage.slices import index as slice_index
from storage.slices import layout, publishing, store_plan
from storage.slices import writer as slice_writer
from storage.slices.config import StoreConfig
from storage.sources.losses import emptied_folders, folders_told

Log = Callable[[str], None]

_ONE_OF_EACH = "one_of_each.png"


def _manifest(workspace: Workspace, reference: ArtefactRef) -> pd.DataFrame:
    return pd.read_parquet(workspace.artefacts.get(reference).path / "manifest.parquet")


def store_config(workspace: Workspace, modality: str) -> StoreConfig:
    """Return how a modality's store is cut and compressed."""
    store = workspace.profile.store
    return StoreConfig(
        chunk_bytes=store.chunk_bytes,
        chunks_per_shard=store.chunks_per_shard,
        part_shards=store.part_shards,
        codec=store.codec,
        level=store.levels.get(modality, store.level),
    )


def _batches(items: Sequence[str], size: int) -> list[list[str]]:
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def _accepted(workspace: Workspace, modality: str, manifest: ArtefactRef) -> pd.DataFrame:
    table = _manifest(workspace, manifest)
    return table[(table["status"] == "accepted") & (table["modality"] == modality)]


def _planned(workspace: Workspace, modality: str, rows: pd.DataFrame) -> list[str]:
    """Plan the parts that hold some rows of the manifest and return the missing ones' ids."""
    plan = store_plan.plan_parts(workspace.stores, modality, rows, store_config(workspace, modality))
    return [part.part_id for part in slice_writer.missing_parts(workspace.stores, modality, plan)]


def plan_store(workspace: Workspace, modality: str, manifest: ArtefactRef) -> list[list[str]]:
    """Plan one modality's parts and return the missing ones' ids, batched into steps."""
    missing = _planned(workspace, modality, _accepted(workspace, modality, manifest))
    return _batches(missing, workspace.profile.store.parts_per_step)


def write_store_parts(workspace: Workspace, modality: str, part_ids: Sequence[str], log: Log) -> StorePartsMade:
    """Write some parts of one modality's store; each is published whole or not at all.

    A part is not written if a case of it is no longer the one that was planned; such cases are named.
    """
    parts = layout.load_plan(workspace.stores, modality, set(part_ids))
    source = source_of(workspace, log, {case.case_id for part in parts for case in part.cases})
    processes = process_count(parts, workspace.settings.workers, workspace.settings.memory_bytes)
    made: list[str] = []
    lost: dict[str, str] = {}
    for done, written in enumerate(write_parts(workspace.stores, parts, source, processes), start=1):
        if isinstance(written, LostCases):
            lost |= written.reasons
            named = "; ".join(f"{case_id}: {reason}" for case_id, reason in written.reasons.items())
            log(f"{modality} {written.part_id} not written: {named}")
            continue
        made.append(written.part_id)
        counts = f"{written.n_cases} cases, {written.n_slices} slices"
        log(f"{modality} {written.part_id}: {counts}; {done} of {len(parts)} parts of this step")
    return StorePartsMade(tuple(made), lost)


def leave_out_lost(
    workspace: Workspace, modality: str, manifest: ArtefactRef, written: Sequence[StorePartsMade], log: Log
) -> StorePartsMade:
    """Plan and write what steps could not, without the cases that stood in the way.

    Returns:
        What all steps and this one made, and every case that is left out.

    Raises:
        StorageError: If half or more of the modality's cases, or all of a folder, would be left out, unless the
            settings accept that.
    """
    rows = _accepted(workspace, modality, manifest)
    made = [part for step in written for part in step.made]
    fresh = {case_id: reason for step in written for case_id, reason in step.lost.items()}
    lost: dict[str, str] = {}
    while fresh:
        lost |= fresh
        if not workspace.settings.accept_loss:
            _require_few_lost(modality, rows, lost)
        again = write_store_parts(workspace, modality, _planned(workspace, modality, _without(rows, lost)), log)
        made += again.made
        fresh = again.lost
    return StorePartsMade(tuple(made), lost)


def _require_few_lost(modality: str, rows: pd.DataFrame, lost: dict[str, str]) -> None:
    """Refuse to leave out half or more of a modality's cases, or all that a folder held of them."""
    folders = emptied_folders(rows["case_id"], _without(rows, lost)["case_id"])
    if 2 * len(lost) < len(rows) and not folders:
        return
    found = f"half or more of them lost since, {len(lost)} so far"
    if 2 * len(lost) < len(rows):
        found = f"folders that held cases and hold none now: {folders_told(folders)}"
    named = "\n  ".join(f"{case_id}: {reason}" for case_id, reason in list(lost.items())[:20])
    raise StorageError(
        f"slice store {modality}: expected the {len(rows)} cases of the last scan, found {found}. Mount or restore "
        "what is missing, materialise raw_manifest and run again; if the loss is meant, set MEDSAM_ACCEPT_LOSS=1 for "
        f"one run:\n  {named}"
    )


def _without(rows: pd.DataFrame, lost: Iterable[str]) -> pd.DataFrame:
    return rows[~rows["case_id"].isin(list(lost))]


def publish_store(
    workspace: Workspace, modality: str, manifest: ArtefactRef, written: Sequence[StorePartsMade], log: Log
) -> TaskResult[StoreRef]:
    """Publish one modality's parts as a store that readers accept, without cases that were lost since the scan."""
    step = leave_out_lost(workspace, modality, manifest, written, log)
    plan = layout.load_layout(workspace.stores, modality).parts
    published = publishing.publish(workspace.stores, modality, plan)
    kept = _without(_manifest(workspace, manifest), step.lost)
    index = slice_index.build_index(workspace.stores, [modality], kept)
    left_out = pd.DataFrame(list(step.lost.items()), columns=["case_id", "reason"])
    notes = {
        "cases": int(index["case_id"].nunique()),
        "slices": len(index),
        "slices with labels": int((index["fg_px"] > 0).sum()),
        "left out, for their files are no longer those of the scan": left_out if len(left_out) else "none",
        "parts made": ", ".join(step.made) or "none",
        "bytes on disk": published.n_bytes(),
        "samples": _sample_picture(workspace, modality, index, published.fingerprint),
    }
    value = StoreRef(modality, published.fingerprint, step.made, step.lost)
    # Of the parts that steps made, those with a lost case may have been planned and written again.
    made = len({part.part_id for part in plan} & set(step.made))
    return TaskResult(value, published.fingerprint, made, len(plan) - made, notes)


def _sample_picture(workspace: Workspace, modality: str, index: pd.DataFrame, digest: str) -> Picture | None:
    """Draw a few labelled slices with their masks, spread over the store."""
    labelled = index[index["fg_px"] > 0]
    chosen = labelled.iloc[np.unique(np.linspace(0, max(len(labelled) - 1, 0), 8).astype(int))[: len(labelled)]]
    return _sheet(workspace, chosen, workspace.settings.state / "pictures" / f"{modality}-{digest[:16]}.png")


def _sheet(workspace: Workspace, rows: pd.DataFrame, path: Path) -> Picture | None:
    """Draw these slices with their masks, unless that was done before."""
    if rows.empty:
        return None
    if not path.is_file():
        chosen = rows.reset_index(drop=True)
        reader = ReleaseReader(workspace.stores, SliceColumns.of(chosen))
        pictures.slice_sheet([(*reader.read(row), chosen["case_id"].iloc[row]) for row in range(len(chosen))], path)
    return Picture(path)


def _one_of_each(index: pd.DataFrame) -> pd.DataFrame:
    """Return the labelled slice in the middle of each modality and data set, of the first 32 of them."""
    labelled = index[index["fg_px"] > 0]
    found = labelled.groupby(["modality", "dataset"], sort=False).groups
    return labelled.loc[[rows[len(rows) // 2] for rows in found.values()][:32]]


def make_index(workspace: Workspace, manifest: ArtefactRef, stores: Sequence[StoreRef]) -> TaskResult[ArtefactRef]:
    """Build the slice index and the modality index over the published stores."""
    lost = sorted(case_id for store in stores for case_id in store.lost)
    made_from = {
        "manifest": manifest.fingerprint,
        "stores": {store.modality: store.fingerprint for store in stores},
        "version": 2,
        **({"lost": lost} if lost else {}),
    }

    def build(folder: Path) -> dict[str, int]:
        kept = _without(_manifest(workspace, manifest), lost)
        index = slice_index.build_index(workspace.stores, list(MODALITIES), kept)
        write_parquet(folder / "slice_index.parquet", index)
        write_parquet(folder / "modality_index.parquet", slice_index.modality_index(index))
        _sheet(workspace, _one_of_each(index), folder / _ONE_OF_EACH)
        return {"slices": len(index), "cases": int(index["case_id"].nunique())}

    made = workspace.artefacts.make("index", made_from, build)
    sheet = made.path / _ONE_OF_EACH
    notes = {
        **made.info,
        "modality index": pd.read_parquet(made.path / "modality_index.parquet"),
        "one of each": Picture(sheet) if sheet.is_file() else "no labelled slice",
    }
    return TaskResult(made.reference(), made.fingerprint, int(not made.reused), int(made.reused), notes)
