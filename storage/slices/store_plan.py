"""Assigning cases to the parts of a slice store, before any part is written.

What belongs here: the first plan, and a new plan after the source changed. Not here: pixels (`storage.slices.reader`).
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import pandas as pd

from storage.base.blobs import Blobs, seal
from storage.base.errors import IntegrityError, StorageError
from storage.shards.arrays import round_up
from storage.slices.config import StoreConfig
from storage.slices.layout import LAYOUT, StoreLayout, read_layout, with_cases
from storage.slices.planned import PartPlan, PlannedCase, plan_key

_CASE_TYPES: Final[dict[str, type[str | bool | int]]] = {
    "case_id": str,
    "content_hash": str,
    "is_3d": bool,
    **dict.fromkeys(("depth", "height", "width", "channels"), int),
    "gt_dtype": str,
}
"""Fields of a `PlannedCase`, in order."""

logger = logging.getLogger(__name__)


def plan_parts(root: Blobs, modality: str, manifest_rows: pd.DataFrame, config: StoreConfig) -> list[PartPlan]:
    """Assign a modality's cases to parts and record the plan; a part whose cases are unchanged is kept.

    The first plan takes cases in the order of their ids. Later, a part with a changed or removed case is replaced by a
    part with its remaining cases, in new shards; new cases go to new parts. A part is also replaced if its bytes would
    differ under `config`.

    Args:
        root: Place of all stores.
        modality: Canonical modality name.
        manifest_rows: Accepted rows of this modality from the raw manifest.
        config: Configuration of the store.

    Returns:
        The parts, by number.

    Raises:
        BusyError: If another process is planning, writing or publishing this store.
    """
    wanted = planned_cases(manifest_rows)
    group = root.below(modality)
    with group.exclusive(f"slice store {modality}"):
        before, version = read_layout(group) or (StoreLayout(config), None)
        parts, after = _replanned(before, _with_good_lists(group, before), modality, wanted, config)
        known = {part.part_id for part in before.parts}
        for part in parts:
            if part.part_id not in known:
                group.put(plan_key(part.part_id), part.sealed_cases())
        if version is None or after != before:
            group.replace(LAYOUT, seal(after.to_json()), version)
    return parts


def _with_good_lists(group: Blobs, layout: StoreLayout) -> Iterator[PartPlan]:
    """Yield the parts with their cases; a part whose list is missing or altered is left out, so that it is replaced."""
    for part in layout.parts:
        try:
            yield with_cases(group, layout.config, part)
        except IntegrityError as error:
            logger.warning("%s; its cases are planned again", error)


def planned_cases(manifest_rows: pd.DataFrame) -> dict[str, PlannedCase]:
    """Return the cases of the manifest by id, in the order of ids.

    Raises:
        StorageError: If an id occurs twice.
    """
    rows = manifest_rows.sort_values("case_id")
    columns = [[kind(value) for value in rows[name].tolist()] for name, kind in _CASE_TYPES.items()]
    cases = {case.case_id: case for case in (PlannedCase(*values) for values in zip(*columns, strict=True))}
    if len(cases) != len(manifest_rows):
        twice = manifest_rows.loc[manifest_rows["case_id"].duplicated(), "case_id"].tolist()
        raise StorageError(f"manifest: expected every case id once, found {twice[:5]} twice; run raw_manifest again")
    return cases


def _replanned(
    before: StoreLayout,
    old_parts: Iterable[PartPlan],
    modality: str,
    wanted: Mapping[str, PlannedCase],
    config: StoreConfig,
) -> tuple[list[PartPlan], StoreLayout]:
    """Return the parts of the wanted cases, kept parts first, and the layout that lists them."""
    after = StoreLayout(config, [], before.next_part, dict(before.next_shard))
    fresh = dict(wanted)
    kept: list[PartPlan] = []
    renewed: list[list[PlannedCase]] = []
    same_encoding = config.encoding() == before.config.encoding()
    for part in old_parts:
        cases = [fresh.pop(case.case_id) for case in part.cases if case.case_id in fresh]
        if same_encoding and tuple(cases) == part.cases:
            kept.append(part)
            after.parts.append(part.entry)
        else:
            renewed.append(cases)
    added = [
        after.add(modality, group) for cases in [*renewed, list(fresh.values())] for group in _filled(config, cases)
    ]
    return kept + added, after


def _filled(config: StoreConfig, cases: Iterable[PlannedCase]) -> list[list[PlannedCase]]:
    """Divide cases, in order, into the longest lists whose images fit into the shards that a part may own."""
    layout = config.array_layouts()["imgs"]
    room = config.part_shards * layout.shard
    groups: list[list[PlannedCase]] = []
    used = room
    for case in cases:
        size = case.depth * round_up(case.elements()["imgs"], layout.chunk)
        if not groups or used + size > room:
            groups.append([])
            used = 0
        groups[-1].append(case)
        used += size
    return groups
