"""Verifying a slice store: reading all of it again to find damage, and withdrawing damaged parts.

What belongs here: the blobs of a store outside its parts, withdrawing damaged parts, repairing the plan. Not here:
comparing bytes (`storage.shards.verification`); writing parts again (`storage.slices.writer`), which needs the source.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from storage.base.blobs import Blobs, seal
from storage.base.errors import IntegrityError, StorageError
from storage.shards.fragments import MANIFEST
from storage.shards.parts import withdraw_parts
from storage.shards.verification import (
    Comparison,
    Damage,
    Expected,
    Progress,
    compare,
    expected_content,
    expected_of_parts,
)
from storage.slices.config import GT_ARRAYS
from storage.slices.index import read_rows
from storage.slices.layout import LAYOUT, StoreLayout, load_layout, with_cases
from storage.slices.manifest import StoreManifest, load_manifest
from storage.slices.planned import PartEntry, PartPlan, PlannedCase, plan_key, same_parts
from storage.slices.publishing import metadata_of, publish


@dataclass(frozen=True)
class Verification(Comparison):
    """The result of verifying one store.

    Attributes:
        modality: Canonical modality name.
        cases: Damaged part -> its cases, which must be read from the source again.
    """

    modality: str
    cases: dict[str, tuple[str, ...]]

    def table(self) -> pd.DataFrame:
        """Return a row for each damage: modality, key, problem, part_id, cases."""
        rows = [
            {
                "modality": self.modality,
                "key": damage.key,
                "problem": damage.problem,
                "part_id": damage.part_id,
                "cases": ", ".join(self.cases.get(damage.part_id, ())),
            }
            for damage in self.damages
        ]
        return pd.DataFrame(rows, columns=["modality", "key", "problem", "part_id", "cases"])


def verify(root: Blobs, modality: str, progress: Progress | None = None) -> Verification:
    """Compare every blob of a published store with its recorded size and hash.

    Args:
        root: Place of all stores.
        modality: Canonical modality name.
        progress: Called with (bytes read, bytes to read) after each blob.

    Raises:
        StorageError: If the store is not published, or another version of this project wrote it.
        IntegrityError: If the manifest is damaged; a repair publishes it again.
    """
    manifest = load_manifest(root, modality)
    compared = compare(root.below(modality), _expected(manifest), (MANIFEST, LAYOUT), progress)
    damages = sorted([*compared.damages, *_plan_damage(root, modality, manifest)], key=lambda damage: damage.key)
    return Verification(
        n_blobs=compared.n_blobs + 2,
        n_bytes=compared.n_bytes,
        damages=tuple(damages),
        unnamed=compared.unnamed,
        modality=modality,
        cases=_cases(root, modality, {damage.part_id for damage in damages if damage.part_id}),
    )


def _expected(manifest: StoreManifest) -> Iterator[Expected]:
    """Yield every blob that follows from the manifest."""
    yield from expected_of_parts(manifest.fragments, manifest.config.array_layouts())
    for fragment in manifest.fragments:
        yield Expected(plan_key(fragment.part_id), fragment.plan)
    yield from expected_content(metadata_of(manifest))


def _plan_damage(root: Blobs, modality: str, manifest: StoreManifest) -> list[Damage]:
    try:
        layout = load_layout(root, modality)
    except StorageError as error:
        return [Damage(LAYOUT, str(error), "")]
    published = _entries(manifest)
    if same_parts(layout.parts, published):
        return []
    return [Damage(LAYOUT, f"expected the plan of the {len(published)} published parts, found a newer one", "")]


def _entries(manifest: StoreManifest) -> list[PartEntry]:
    """Return the entries in the plan of the parts that a manifest publishes."""
    return [fragment.as_planned(manifest.modality) for fragment in manifest.fragments]


def _cases(root: Blobs, modality: str, part_ids: set[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = dict.fromkeys(sorted(part_ids), ())
    if not part_ids:
        return found
    try:
        layout = load_layout(root, modality)
    except StorageError:
        return found
    for part in layout.parts:
        if part.part_id in found:
            try:
                cases = with_cases(root.below(modality), layout.config, part).cases
            except StorageError:
                # Its list of cases is damaged too.
                continue
            found[part.part_id] = tuple(case.case_id for case in cases)
    return found


def withdraw(root: Blobs, found: Verification) -> None:
    """Delete the fragment of every damaged part, so that ingest writes the part again; repair the plan.

    Raises:
        StorageError: If the plan and the index rows that would restore it are both damaged; make the store from the
            beginning.
    """
    group = root.below(found.modality)
    if any(damage.key == LAYOUT or damage.key.startswith("plan/") for damage in found.damages):
        _restore_plan(root, found.modality)
    part_ids = sorted({damage.part_id for damage in found.damages if damage.part_id})
    with group.exclusive(f"slice store {found.modality}"):
        withdraw_parts(group, part_ids)


def _restore_plan(root: Blobs, modality: str) -> None:
    """Restore missing or damaged parts of the plan from the manifest and the index rows."""
    group, manifest = root.below(modality), load_manifest(root, modality)
    with group.exclusive(f"slice store {modality}"):
        for part in _entries(manifest):
            try:
                with_cases(group, manifest.config, part)
            except StorageError:
                cases = _cases_of_rows(group, part.part_id)
                group.put(plan_key(part.part_id), PartPlan(**vars(part), cases=cases).sealed_cases())
        try:
            load_layout(root, modality)
        except StorageError:
            arrays = manifest.config.array_layouts()
            next_shard = {name: length // arrays[name].shard for name, length in manifest.lengths.items()}
            layout = StoreLayout(manifest.config, _entries(manifest), manifest.next_part, next_shard)
            group.put(LAYOUT, seal(layout.to_json()))


def _cases_of_rows(group: Blobs, part_id: str) -> tuple[PlannedCase, ...]:
    """Return the cases of a part in stored order, from its index rows."""
    rows = read_rows(group, part_id).to_pandas()
    types = rows["gt_array"].map({name: dtype for dtype, name in GT_ARRAYS.items()})
    firsts = rows.assign(gt_dtype=types).sort_values("img_offset").drop_duplicates("case_id")
    records = firsts[list(PlannedCase.__dataclass_fields__)].astype(object).to_dict("records")
    return tuple(PlannedCase(**{str(name): value for name, value in record.items()}) for record in records)


def verify_again(root: Blobs, modality: str) -> Verification:
    """Publish the store again, whose parts must all be complete, and verify it.

    Raises:
        IntegrityError: If a part is missing.
    """
    publish(root, modality, load_layout(root, modality).parts)
    found = verify(root, modality)
    if found.damages:
        raise IntegrityError(
            f"slice store {modality}: expected it whole after repair, found {len(found.damages)} damaged, such as "
            f"{found.damages[0].key}: {found.damages[0].problem}; check the disk"
        )
    return found
