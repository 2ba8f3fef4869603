"""Reading a whole store again to find what is damaged, and making ready what has to be written again.

What belongs here: comparing every byte with what the manifest vouches for; withdrawing damaged parts. Not here: writing
them again (`storage.slices.writer`), for which the source is needed.

The manifest and the plan are sealed with hashes of their own, fragments and array metadata follow from them, shards and
index rows have theirs in the manifest: a flipped byte anywhere is found.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from storage.base.blobs import Blobs, seal
from storage.base.errors import IntegrityError, StorageError
from storage.shards.arrays import ARRAY_METADATA, group_metadata
from storage.slices.index import read_rows
from storage.slices.layout import (
    GT_ARRAYS,
    LAYOUT,
    MANIFEST,
    PartEntry,
    PartPlan,
    PlannedCase,
    StoreConfig,
    StoreLayout,
    fragment_key,
    load_layout,
    load_manifest,
    plan_key,
    rows_key,
    same_parts,
    with_cases,
)
from storage.slices.writer import fragment_of, publish

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Damage:
    """A blob that is not what it should be.

    Attributes:
        key: Its key in the modality's group.
        problem: What was expected and found.
        part_id: The part that has to be written again; empty where publishing again is enough.
    """

    key: str
    problem: str
    part_id: str


@dataclass(frozen=True)
class Verification:
    """What was found in one store.

    Attributes:
        modality: Canonical modality name.
        n_blobs: Blobs examined.
        n_bytes: Bytes read.
        damages: What is wrong, in the order of keys.
        unnamed: Keys that nothing vouches for and nobody reads: left by killed writers, cleared by publishing.
        cases: Damaged part -> the cases in it, which have to be read from the source again.
    """

    modality: str
    n_blobs: int
    n_bytes: int
    damages: tuple[Damage, ...]
    unnamed: tuple[str, ...]
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
    """Compare every blob of a published store with what vouches for it.

    Args:
        root: Place of all stores.
        modality: Canonical modality name.
        progress: Called with (bytes read, bytes to read) after each blob.

    Raises:
        StorageError: If the store is not published, or another version of this project wrote it.
        IntegrityError: If the manifest itself is damaged; `repair` publishes it again.
    """
    group, manifest = root.below(modality), load_manifest(root, modality)
    there = group.sizes()
    expected = list(_expected(manifest))
    damages, n_bytes = [], 0
    total = sum(there.get(key, 0) for key, _, _, _ in expected)
    for key, size, digest, part_id in expected:
        problem, read = _problem(group, key, size, digest, there.get(key))
        n_bytes += read
        if problem:
            damages.append(Damage(key, problem, part_id))
        if progress:
            progress(n_bytes, total)
    damages += _plan_damage(root, modality, manifest)
    unnamed = set(there) - {key for key, _, _, _ in expected} - {MANIFEST, LAYOUT}
    broken = {damage.part_id for damage in damages if damage.part_id}
    cases = _cases(root, modality, broken)
    ordered = tuple(sorted(damages, key=lambda damage: damage.key))
    return Verification(modality, len(expected) + 2, n_bytes, ordered, tuple(sorted(unnamed)), cases)


def _expected(manifest: dict[str, Any]) -> Iterator[tuple[str, int, str, str]]:
    """Yield key, size, SHA-256 and part of every blob that follows from the manifest."""
    layouts = StoreConfig(**manifest["config"]).array_layouts()
    for shard in manifest["shards"]:
        yield layouts[shard["array"]].key(shard["shard"]), shard["n_bytes"], shard["sha256"], shard["part_id"]
    for part in manifest["parts"]:
        yield rows_key(part["part_id"]), part["index"]["n_bytes"], part["index"]["sha256"], part["part_id"]
        yield plan_key(part["part_id"]), part["plan"]["n_bytes"], part["plan"]["sha256"], ""
        yield *_made(fragment_key(part["part_id"]), seal(fragment_of(manifest, part["part_id"]))), part["part_id"]
    yield *_made(ARRAY_METADATA, group_metadata()), ""
    for name, layout in layouts.items():
        yield *_made(f"{name}/{ARRAY_METADATA}", layout.metadata(manifest["arrays"][name]["length"])), ""


def _made(key: str, data: bytes) -> tuple[str, int, str]:
    return key, len(data), hashlib.sha256(data).hexdigest()


def _problem(group: Blobs, key: str, size: int, digest: str, found: int | None) -> tuple[str | None, int]:
    """Return what is wrong with a blob, and the bytes read to find out."""
    if found is None:
        return f"expected {size} bytes, found no file", 0
    if found != size:
        return f"expected {size} bytes, found {found}", 0
    data = group.read(key)
    actual = hashlib.sha256(data).hexdigest()
    return None if actual == digest else f"expected sha256 {digest[:16]}, found {actual[:16]}", len(data)


def _plan_damage(root: Blobs, modality: str, manifest: dict[str, Any]) -> list[Damage]:
    try:
        layout = load_layout(root, modality)
    except StorageError as error:
        return [Damage(LAYOUT, str(error), "")]
    published = _entries(modality, manifest)
    if same_parts(layout.parts, published):
        return []
    return [Damage(LAYOUT, f"expected the plan of the {len(published)} published parts, found a newer one", "")]


def _entries(modality: str, manifest: dict[str, Any]) -> list[PartEntry]:
    """Return the parts that a manifest publishes, as its plan lists them."""
    names = [name for name in PartEntry.__dataclass_fields__ if name != "modality"]
    return [PartEntry(modality=modality, **{name: part[name] for name in names}) for part in manifest["parts"]]


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
    """Take back the commitment of every damaged part, so that it is missing and ingest writes it again; mend the plan.

    Raises:
        StorageError: If both the plan and the rows it could be told from are damaged; the store has to be made anew.
    """
    group = root.below(found.modality)
    if any(damage.key == LAYOUT or damage.key.startswith("plan/") for damage in found.damages):
        _restore_plan(root, found.modality)
    part_ids = sorted({damage.part_id for damage in found.damages if damage.part_id})
    with group.exclusive(f"slice store {found.modality}"):
        for part_id in part_ids:
            group.delete(fragment_key(part_id))


def _restore_plan(root: Blobs, modality: str) -> None:
    """Write the plan that the manifest and the rows tell of, as far as there is no good one."""
    group, manifest = root.below(modality), load_manifest(root, modality)
    config = StoreConfig(**manifest["config"])
    with group.exclusive(f"slice store {modality}"):
        for part in _entries(modality, manifest):
            try:
                with_cases(group, config, part)
            except StorageError:
                cases = _told_cases(group, part.part_id)
                group.put(plan_key(part.part_id), PartPlan(**vars(part), cases=cases).sealed_cases())
        try:
            load_layout(root, modality)
        except StorageError:
            next_shard = {name: entry["length"] // entry["shard"] for name, entry in manifest["arrays"].items()}
            layout = StoreLayout(config, _entries(modality, manifest), manifest["next_part"], next_shard)
            group.put(LAYOUT, seal(layout.to_json()))


def _told_cases(group: Blobs, part_id: str) -> tuple[PlannedCase, ...]:
    """Return the cases of a part in the order they are stored, as its rows tell."""
    rows = read_rows(group, part_id).to_pandas()
    types = rows["gt_array"].map({name: dtype for dtype, name in GT_ARRAYS.items()})
    firsts = rows.assign(gt_dtype=types).sort_values("img_offset").drop_duplicates("case_id")
    records = firsts[list(PlannedCase.__dataclass_fields__)].astype(object).to_dict("records")
    return tuple(PlannedCase(**{str(name): value for name, value in record.items()}) for record in records)


def verify_again(root: Blobs, modality: str) -> Verification:
    """Publish the plan, whose parts must all be whole, and verify.

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
