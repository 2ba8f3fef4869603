"""Writing slice stores: parts, then the manifest that publishes them.

What belongs here: writing a part, finding what is missing, publishing. Not here: which part holds what
(`storage.store_plan`), the byte format (`storage.shards`), the rows that describe slices (`storage.slice_index`).

A part is committed by its fragment, a small JSON file written last. `publish` gathers the fragments into the manifest,
without which nothing is read.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from storage.atomic import read_json, remove_partials, write_bytes, write_json
from storage.errors import IntegrityError, StorageError
from storage.fingerprints import combine, file_hash
from storage.layout import (
    GT_ARRAYS,
    STORE_VERSION,
    PartPlan,
    PlannedCase,
    StoreConfig,
    StoreLayout,
    fragment_path,
    load_layout,
    lock_path,
    modality_folder,
    part_index_path,
)
from storage.locks import exclusive_lock, shared_lock
from storage.npz_source import NpzCase
from storage.shards import ARRAY_METADATA, ArrayLayout, ShardWriter, group_metadata, record_from, record_problem
from storage.slice_index import slice_row, write_part_rows

LoadCase = Callable[[str], NpzCase]


def missing_parts(root: Path, modality: str, plan: Sequence[PartPlan]) -> list[PartPlan]:
    """Return the parts of a plan that are not on disk, whole and of the planned fingerprint.

    Looks at fragments and at the presence and size of files, not at their content.
    """
    config = load_layout(root, modality).config
    return [part for part in plan if _committed(root, part, config) is None]


def _committed(root: Path, part: PartPlan, config: StoreConfig) -> dict[str, Any] | None:
    """Return the fragment of a part if the part is whole, else None."""
    path = fragment_path(root, part)
    if not path.is_file():
        return None
    fragment: dict[str, Any] = read_json(path)
    folder, layouts = modality_folder(root, part.modality), config.array_layouts()
    rows = part_index_path(root, part.modality, part.part_id)
    whole = (
        fragment["fingerprint"] == part.fingerprint
        and rows.is_file()
        and rows.stat().st_size == fragment["index"]["n_bytes"]
        and not any(record_problem(folder, layouts[shard["array"]], record_from(shard)) for shard in fragment["shards"])
    )
    return fragment if whole else None


def write_part(root: Path, plan: PartPlan, load_case: LoadCase) -> dict[str, Any]:
    """Write one part: its shards, then its index rows, then the fragment that commits it.

    At most one shard of each array and one case are in memory. A part that is already whole is not written again;
    writing again what a killed process left gives the same bytes.

    Args:
        root: Folder of all stores.
        plan: The part, one of the recorded plan.
        load_case: Returns a case by its id.

    Returns:
        The fragment.

    Raises:
        BusyError: If another process is planning or publishing this store.
        StorageError: If the plan was replaced, or a case is no longer the one planned.
    """
    with shared_lock(lock_path(root, plan.modality), what=f"slice store {plan.modality}"):
        layout = load_layout(root, plan.modality)
        if plan not in layout.parts:
            raise _replaced(plan.modality, plan.part_id)
        fragment = _committed(root, plan, layout.config)
        if fragment is None:
            fragment = _write_part(root, plan, layout.config, load_case)
            write_json(fragment_path(root, plan), fragment)
    return fragment


def _replaced(modality: str, what: str) -> StorageError:
    return StorageError(
        f"slice store {modality}: expected {what} in the recorded plan, found a newer plan without it; load the plan "
        "again and go on with that"
    )


def _write_part(root: Path, plan: PartPlan, config: StoreConfig, load_case: LoadCase) -> dict[str, Any]:
    folder = modality_folder(root, plan.modality)
    writers = {
        name: ShardWriter(folder, layout, plan.first_shard[name], plan.n_shards[name])
        for name, layout in config.array_layouts().items()
    }
    rows: list[dict[str, Any]] = []
    for planned in plan.cases:
        named = {"modality": plan.modality, "case_id": planned.case_id, "content_hash": planned.content_hash}
        found = _write_case(_checked(load_case(planned.case_id), planned), writers)
        rows += [{**row, **named, "part_id": plan.part_id} for row in found]
    records = [record for writer in writers.values() for record in writer.close()]
    index = part_index_path(root, plan.modality, plan.part_id)
    write_part_rows(index, rows)
    return {
        "format_version": STORE_VERSION,
        "part_id": plan.part_id,
        "fingerprint": plan.fingerprint,
        "n_cases": len(plan.cases),
        "n_slices": len(rows),
        "index": {"n_bytes": index.stat().st_size, "sha256": file_hash(index)},
        "shards": [asdict(record) for record in records],
    }


def _checked(case: NpzCase, planned: PlannedCase) -> NpzCase:
    if case.content_hash != planned.content_hash:
        raise StorageError(
            f"{planned.case_id}: expected content {planned.content_hash[:16]}, found {case.content_hash[:16]}; "
            "the file changed since the manifest was made: run raw_manifest again"
        )
    return case


def _write_case(case: NpzCase, writers: dict[str, ShardWriter]) -> list[dict[str, Any]]:
    gt_array = "" if case.gts is None else GT_ARRAYS[case.gts.dtype.name]
    rows = []
    for z in range(case.depth):
        mask = case.slice_mask(z)
        img_offset = writers["imgs"].append(np.ascontiguousarray(case.slice_image(z)).reshape(-1))
        gt_offset = -1 if mask is None else writers[gt_array].append(np.ascontiguousarray(mask).reshape(-1))
        rows.append(slice_row(case, z, img_offset, gt_offset))
    return rows


def publish(root: Path, modality: str, plan: Sequence[PartPlan]) -> dict[str, Any]:
    """Publish a modality's parts: array metadata, then the manifest, then away with what it does not name.

    Args:
        root: Folder of all stores.
        modality: Canonical modality name.
        plan: The whole recorded plan.

    Returns:
        The manifest.

    Raises:
        BusyError: If another process is planning, writing or publishing this store.
        StorageError: If the plan is not the recorded one.
        IntegrityError: If a part is missing.
    """
    folder = modality_folder(root, modality)
    with exclusive_lock(lock_path(root, modality), what=f"slice store {modality}"):
        layout = load_layout(root, modality)
        if list(plan) != layout.parts:
            raise _replaced(modality, f"{len(plan)} parts")
        fragments = _fragments(root, layout)
        manifest = _manifest(modality, layout, fragments)
        write_bytes(folder / ARRAY_METADATA, group_metadata())
        for name, array in layout.config.array_layouts().items():
            write_bytes(folder / name / ARRAY_METADATA, array.metadata(manifest["arrays"][name]["length"]))
        write_json(folder / "manifest.json", manifest)
        _remove_unnamed(folder, layout, manifest)
    return manifest


def _fragments(root: Path, layout: StoreLayout) -> list[dict[str, Any]]:
    found = [(part, _committed(root, part, layout.config)) for part in layout.parts]
    missing = [part.part_id for part, fragment in found if fragment is None]
    if missing:
        raise IntegrityError(
            f"slice store {layout.parts[0].modality}: expected {len(found)} whole parts, found {len(missing)} missing: "
            f"{', '.join(missing[:5])}; write them, then publish again"
        )
    return [fragment for _, fragment in found if fragment is not None]


def _manifest(modality: str, layout: StoreLayout, fragments: Sequence[dict[str, Any]]) -> dict[str, Any]:
    arrays = layout.config.array_layouts()
    return {
        "format_version": STORE_VERSION,
        "modality": modality,
        "fingerprint": combine([modality, *(f"{item['part_id']} {item['fingerprint']}" for item in fragments)]),
        "config": asdict(layout.config),
        # Lengths only grow, so that a reader of the manifest before still finds its elements.
        "arrays": {name: _array_entry(array, layout.next_shard[name]) for name, array in arrays.items()},
        "parts": [{key: value for key, value in item.items() if key != "shards"} for item in fragments],
        "shards": [{**shard, "part_id": item["part_id"]} for item in fragments for shard in item["shards"]],
    }


def _array_entry(array: ArrayLayout, n_shards: int) -> dict[str, Any]:
    return {"dtype": array.dtype, "chunk": array.chunk, "shard": array.shard, "length": array.shard * n_shards}


def _remove_unnamed(folder: Path, layout: StoreLayout, manifest: dict[str, Any]) -> None:
    arrays = layout.config.array_layouts()
    named = {arrays[shard["array"]].path(folder, shard["shard"]) for shard in manifest["shards"]}
    for part in manifest["parts"]:
        named |= {folder / "parts" / f"{part['part_id']}.{suffix}" for suffix in ("json", "parquet")}
    for candidates in (folder / "parts", *(folder / name / "c" for name in arrays)):
        for path in candidates.glob("*"):
            if path not in named:
                path.unlink(missing_ok=True)
    remove_partials(folder)
