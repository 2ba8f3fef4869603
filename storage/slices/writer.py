"""Writing slice stores: parts, then the manifest that publishes them.

What belongs here: writing a part, finding what is missing, publishing. Not here: which part holds what
(`storage.slices.store_plan`), the byte format (`storage.shards.arrays`), the rows that describe slices
(`storage.slices.index`).

A part is committed by its fragment, a small JSON file written last. `publish` gathers the fragments into the manifest,
without which nothing is read.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np

from storage.base.blobs import Blobs, seal, unseal
from storage.base.errors import IntegrityError, StorageError
from storage.base.fingerprints import combine
from storage.shards.arrays import ARRAY_METADATA, ArrayLayout, ShardWriter, group_metadata, record_from
from storage.slices.index import encode_rows, slice_row
from storage.slices.layout import (
    GT_ARRAYS,
    MANIFEST,
    STORE_VERSION,
    PartEntry,
    PartPlan,
    PlannedCase,
    StoreConfig,
    StoreLayout,
    fragment_key,
    load_layout,
    plan_key,
    rows_key,
    same_parts,
)
from storage.sources.npz_source import NpzCase

LoadCase = Callable[[str], NpzCase]
Part = TypeVar("Part", bound=PartEntry)


def missing_parts(root: Blobs, modality: str, plan: Sequence[Part]) -> list[Part]:
    """Return the parts of a plan that are not there, whole and of the planned fingerprint.

    Looks at fragments and at the presence and size of blobs, not at their content.
    """
    group, config = root.below(modality), load_layout(root, modality).config
    sizes = group.sizes()
    return [part for part in plan if _committed(group, part, config, sizes) is None]


def _committed(
    group: Blobs, part: PartEntry, config: StoreConfig, sizes: Mapping[str, int] | None = None
) -> dict[str, Any] | None:
    """Return the fragment of a part if the part is whole, else None; `sizes` spares asking for each blob."""
    size_of = group.size if sizes is None else sizes.get
    if size_of(fragment_key(part.part_id)) is None:
        return None
    fragment = _fragment(group, part.part_id)
    if fragment is None:
        return None
    layouts = config.array_layouts()
    expected = {rows_key(part.part_id): fragment["index"]["n_bytes"]}
    for record in map(record_from, fragment["shards"]):
        expected[layouts[record.array].key(record.shard)] = record.n_bytes
    whole = all(size_of(key) == n_bytes for key, n_bytes in expected.items())
    return fragment if whole and fragment["fingerprint"] == part.fingerprint else None


def _fragment(group: Blobs, part_id: str) -> dict[str, Any] | None:
    """Return a fragment as it was sealed, None if it is altered: its part then counts as missing."""
    try:
        return unseal(group.read(fragment_key(part_id)), part_id)
    except IntegrityError:
        return None


def write_part(root: Blobs, plan: PartPlan, load_case: LoadCase) -> dict[str, Any]:
    """Write one part: its shards, then its index rows, then the fragment that commits it.

    At most one compressed shard of each array and one case are in memory. A part that is already whole is not written
    again; writing again what a killed process left gives the same bytes.

    Args:
        root: Place of all stores.
        plan: The part, one of the recorded plan.
        load_case: Returns a case by its id.

    Returns:
        The fragment.

    Raises:
        BusyError: If another process is planning or publishing this store.
        StorageError: If the plan was replaced, or a case is no longer the one planned.
        IntegrityError: If another process has meanwhile written the part with other bytes.
    """
    group = root.below(plan.modality)
    with group.shared(f"slice store {plan.modality}"):
        layout = load_layout(root, plan.modality)
        if plan.entry not in layout.parts:
            raise _replaced(plan.modality, plan.part_id)
        fragment = _committed(group, plan, layout.config)
        if fragment is None:
            # What commits a part that is not whole would commit what is about to be written before it is there.
            group.delete(fragment_key(plan.part_id))
            fragment = _write_part(group, plan, layout.config, load_case)
            _commit(group, plan, fragment)
    return fragment


def _commit(group: Blobs, plan: PartPlan, fragment: dict[str, Any]) -> None:
    key = fragment_key(plan.part_id)
    if not group.create(key, seal(fragment)) and group.read(key) != seal(fragment):
        raise IntegrityError(
            f"{group.url}/{key}: expected the fragment just written, found another writer's with other bytes; use one "
            "version of this project and its libraries on all machines, delete the fragment and run again"
        )


def _replaced(modality: str, what: str) -> StorageError:
    return StorageError(
        f"slice store {modality}: expected {what} in the recorded plan, found a newer plan without it; load the plan "
        "again and go on with that"
    )


def _write_part(group: Blobs, plan: PartPlan, config: StoreConfig, load_case: LoadCase) -> dict[str, Any]:
    writers = {
        name: ShardWriter(group, layout, plan.first_shard[name], plan.n_shards[name])
        for name, layout in config.array_layouts().items()
    }
    rows: list[dict[str, Any]] = []
    for planned in plan.cases:
        named = {"modality": plan.modality, "case_id": planned.case_id, "content_hash": planned.content_hash}
        found = _write_case(_checked(load_case(planned.case_id), planned), writers)
        rows += [{**row, **named, "part_id": plan.part_id} for row in found]
    records = [record for writer in writers.values() for record in writer.close()]
    index, cases = encode_rows(rows), plan.sealed_cases()
    group.put(rows_key(plan.part_id), index)
    return {
        "format_version": STORE_VERSION,
        "part_id": plan.part_id,
        "fingerprint": plan.fingerprint,
        "first_shard": plan.first_shard,
        "n_shards": plan.n_shards,
        "n_cases": len(plan.cases),
        "n_slices": len(rows),
        "index": _described(index),
        "plan": _described(cases),
        "shards": [asdict(record) for record in records],
    }


def _described(data: bytes) -> dict[str, Any]:
    return {"n_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


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


def publish(root: Blobs, modality: str, plan: Sequence[PartEntry]) -> dict[str, Any]:
    """Publish a modality's parts: array metadata, then the manifest, then away with what it does not name.

    Args:
        root: Place of all stores.
        modality: Canonical modality name.
        plan: The whole recorded plan.

    Returns:
        The manifest.

    Raises:
        BusyError: If another process is planning, writing or publishing this store.
        StorageError: If the plan is not the recorded one.
        IntegrityError: If a part is missing.
    """
    group = root.below(modality)
    with group.exclusive(f"slice store {modality}"):
        # Before the plan: a manifest published for a newer plan since then is never replaced by this one.
        before = group.read_version(MANIFEST)
        layout = load_layout(root, modality)
        if not same_parts(plan, layout.parts):
            raise _replaced(modality, f"{len(plan)} parts")
        manifest = _manifest(modality, layout, _fragments(group, modality, layout))
        _put_changed(group, ARRAY_METADATA, group_metadata())
        for name, array in layout.config.array_layouts().items():
            _put_changed(group, f"{name}/{ARRAY_METADATA}", array.metadata(manifest["arrays"][name]["length"]))
        group.replace(MANIFEST, seal(manifest), before and before[1])
        _remove_unnamed(group, layout, manifest)
    return manifest


def _put_changed(group: Blobs, key: str, data: bytes) -> None:
    found = group.read_version(key)
    if found is None or found[0] != data:
        group.put(key, data)


def _fragments(group: Blobs, modality: str, layout: StoreLayout) -> list[dict[str, Any]]:
    sizes = group.sizes()
    found = [(part, _committed(group, part, layout.config, sizes)) for part in layout.parts]
    missing = [part.part_id for part, fragment in found if fragment is None]
    if missing:
        raise IntegrityError(
            f"slice store {modality}: expected {len(found)} whole parts, found {len(missing)} missing: "
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
        "next_part": layout.next_part,
        "parts": [{key: value for key, value in item.items() if key != "shards"} for item in fragments],
        "shards": [{**shard, "part_id": item["part_id"]} for item in fragments for shard in item["shards"]],
    }


def fragment_of(manifest: dict[str, Any], part_id: str) -> dict[str, Any]:
    """Return the fragment of a part as a manifest repeats it."""
    (part,) = [item for item in manifest["parts"] if item["part_id"] == part_id]
    own = [shard for shard in manifest["shards"] if shard["part_id"] == part_id]
    return {**part, "shards": [{key: value for key, value in shard.items() if key != "part_id"} for shard in own]}


def _array_entry(array: ArrayLayout, n_shards: int) -> dict[str, Any]:
    return {"dtype": array.dtype, "chunk": array.chunk, "shard": array.shard, "length": array.shard * n_shards}


def _remove_unnamed(group: Blobs, layout: StoreLayout, manifest: dict[str, Any]) -> None:
    """Delete shards and parts that the manifest does not name, of numbers that its plan has given out.

    Where writers cannot be locked out, one may already be at work on parts of a newer plan, whose numbers are higher.
    """
    arrays = layout.config.array_layouts()
    named = {arrays[shard["array"]].key(shard["shard"]) for shard in manifest["shards"]}
    for part in manifest["parts"]:
        named |= {key(part["part_id"]) for key in (fragment_key, rows_key, plan_key)}
    limits = {f"{name}/c": layout.next_shard[name] for name in arrays}
    limits |= dict.fromkeys(("parts", "plan"), layout.next_part)
    for folder, limit in limits.items():
        for key in group.sizes(folder):
            if key not in named and _number(key) < limit:
                group.delete(key)
    group.sweep()


def _number(key: str) -> int:
    """Return the shard's or part's number of a key: `imgs/c/12`, `parts/part-00012-1a2b3c4d.json`."""
    name = key.rsplit("/", 1)[-1]
    return int(name.split("-")[1] if name.startswith("part-") else name)
