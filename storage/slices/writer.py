"""Writing the parts of slice stores.

What belongs here: finding missing parts, writing the shards and index rows of a part. Not here: assigning cases to
parts (`storage.slices.store_plan`), committing a part (`storage.shards.parts`), publishing
(`storage.slices.publishing`), the columns of index rows (`storage.slices.index`).
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from storage.base.blobs import Blobs
from storage.base.errors import CaseChangedError, StorageError
from storage.base.file_records import FileRecord
from storage.shards.writing import ShardWriter
from storage.slices.config import GT_ARRAYS, STORE_VERSION, StoreConfig
from storage.slices.index import SliceRow, encode_rows, slice_row
from storage.slices.layout import load_layout
from storage.slices.manifest import SliceFragment, slice_parts
from storage.slices.planned import PartEntry, PartPlan, PlannedCase, rows_key
from storage.sources.case import Case

LoadCase = Callable[[str], Case]
PartT = TypeVar("PartT", bound=PartEntry)


def missing_parts(root: Blobs, modality: str, plan: Sequence[PartT]) -> list[PartT]:
    """Return the parts of a plan that are missing or incomplete, or have another fingerprint than planned.

    Checks fragments, and the presence and size of blobs, not their content.
    """
    return slice_parts(root, modality, load_layout(root, modality).config).missing(plan)


def write_part(root: Blobs, plan: PartPlan, load_case: LoadCase) -> SliceFragment:
    """Write one part: its shards, then its index rows, then the fragment that commits it.

    At most one compressed shard of each array and one case are in memory. A complete part is not written again. A part
    that a killed process left incomplete is written again with the same bytes.

    Args:
        root: Place of all stores.
        plan: The part, one of the recorded plan.
        load_case: Returns a case by its id.

    Returns:
        The fragment.

    Raises:
        BusyError: If another process is planning or publishing this store.
        StorageError: If the plan was replaced, or the content of a case differs from the plan.
        IntegrityError: If another process has written the part with other bytes in the meantime.
    """
    group = root.below(plan.modality)
    with group.shared(f"slice store {plan.modality}"):
        layout = load_layout(root, plan.modality)
        if plan.entry not in layout.parts:
            raise plan_replaced(plan.modality, plan.part_id)
        parts = slice_parts(root, plan.modality, layout.config)
        found = parts.committed(plan)
        return found or parts.write(plan, lambda: _written(group, plan, layout.config, load_case))


def plan_replaced(modality: str, what: str) -> StorageError:
    """Return the error for a part, or several parts, that the recorded plan does not list."""
    return StorageError(
        f"slice store {modality}: expected {what} in the recorded plan, found a newer plan without it; load the plan "
        "again and go on with that"
    )


def _written(group: Blobs, plan: PartPlan, config: StoreConfig, load_case: LoadCase) -> SliceFragment:
    writers = {
        name: ShardWriter(group, layout, plan.first_shard[name], plan.n_shards[name])
        for name, layout in config.array_layouts().items()
    }
    rows: list[SliceRow] = []
    for planned in plan.cases:
        rows += _write_case(_checked(load_case(planned.case_id), planned), planned, plan, writers)
    records = tuple(record for writer in writers.values() for record in writer.close())
    index = encode_rows(rows)
    group.put(rows_key(plan.part_id), index)
    return SliceFragment(
        part_id=plan.part_id,
        fingerprint=plan.fingerprint,
        shards=records,
        format_version=STORE_VERSION,
        first_shard=plan.first_shard,
        n_shards=plan.n_shards,
        n_cases=len(plan.cases),
        n_slices=len(rows),
        index=FileRecord.of(index),
        plan=FileRecord.of(plan.sealed_cases()),
    )


def _checked(case: Case, planned: PlannedCase) -> Case:
    if case.content_hash != planned.content_hash:
        raise CaseChangedError(
            f"{planned.case_id}: expected content {planned.content_hash[:16]}, found {case.content_hash[:16]}; "
            "the file changed since the manifest was made: run raw_manifest again"
        )
    return case


def _write_case(case: Case, planned: PlannedCase, part: PartEntry, writers: dict[str, ShardWriter]) -> list[SliceRow]:
    gt_array = "" if case.gts is None else GT_ARRAYS[case.gts.dtype.name]
    named = {"modality": part.modality, "case_id": planned.case_id, "part_id": part.part_id}
    rows = []
    for z in range(case.depth):
        mask = case.slice_mask(z)
        img_offset = writers["imgs"].append(np.ascontiguousarray(case.slice_image(z)).reshape(-1))
        gt_offset = -1 if mask is None else writers[gt_array].append(np.ascontiguousarray(mask).reshape(-1))
        rows.append({**slice_row(case, z, img_offset, gt_offset), **named, "content_hash": planned.content_hash})
    return rows
