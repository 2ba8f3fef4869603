"""From the raw manifest to slice stores and their index.

What belongs here: calls into `storage` in the order of the flow, and what the page shows of them. Not here: formats.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pipelines.base import pictures
from pipelines.base.results import Picture, TaskResult
from pipelines.base.values import PartsMade, StoreRef
from pipelines.base.workspace import Workspace
from pipelines.ingest.part_writing import process_count, write_parts
from pipelines.ingest.scanning import source_at
from storage.base.atomic import write_parquet
from storage.base.modalities import MODALITIES
from storage.base.references import ArtefactRef
from storage.releases.columns import SliceColumns
from storage.releases.reader import ReleaseReader
from storage.slices import index as slice_index
from storage.slices import layout, publishing, store_plan
from storage.slices import writer as slice_writer
from storage.slices.config import StoreConfig

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


def plan_store(workspace: Workspace, modality: str, manifest: ArtefactRef) -> list[list[str]]:
    """Plan one modality's parts and return the missing ones' ids, batched into steps."""
    table = _manifest(workspace, manifest)
    rows = table[(table["status"] == "accepted") & (table["modality"] == modality)]
    plan = store_plan.plan_parts(workspace.stores, modality, rows, store_config(workspace, modality))
    missing = slice_writer.missing_parts(workspace.stores, modality, plan)
    return _batches([part.part_id for part in missing], workspace.profile.store.parts_per_step)


def write_store_parts(workspace: Workspace, modality: str, part_ids: Sequence[str], log: Log) -> PartsMade:
    """Write some parts of one modality's store; each is published whole or not at all."""
    source = source_at(workspace.settings.data, workspace.profile)
    parts = layout.load_plan(workspace.stores, modality, set(part_ids))
    processes = process_count(parts, workspace.settings.workers, workspace.settings.memory_bytes)
    for done, fragment in enumerate(write_parts(workspace.stores, parts, source.read, processes), start=1):
        counts = f"{fragment.n_cases} cases, {fragment.n_slices} slices"
        log(f"{modality} {fragment.part_id}: {counts}; {done} of {len(parts)} parts of this step")
    return PartsMade(tuple(part_ids))


def publish_store(
    workspace: Workspace, modality: str, manifest: ArtefactRef, written: Sequence[PartsMade]
) -> TaskResult[StoreRef]:
    """Publish one modality's parts as a store that readers accept."""
    plan = layout.load_layout(workspace.stores, modality).parts
    published = publishing.publish(workspace.stores, modality, plan)
    made = [part for step in written for part in step.made]
    index = slice_index.build_index(workspace.stores, [modality], _manifest(workspace, manifest))
    notes = {
        "cases": int(index["case_id"].nunique()),
        "slices": len(index),
        "slices with labels": int((index["fg_px"] > 0).sum()),
        "parts made": ", ".join(made) or "none",
        "bytes on disk": published.n_bytes(),
        "samples": _sample_picture(workspace, modality, index, published.fingerprint),
    }
    value = StoreRef(modality, published.fingerprint, tuple(made))
    return TaskResult(value, published.fingerprint, len(made), len(plan) - len(made), notes)


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
    made_from = {
        "manifest": manifest.fingerprint,
        "stores": {store.modality: store.fingerprint for store in stores},
        "version": 2,
    }

    def build(folder: Path) -> dict[str, int]:
        index = slice_index.build_index(workspace.stores, list(MODALITIES), _manifest(workspace, manifest))
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
