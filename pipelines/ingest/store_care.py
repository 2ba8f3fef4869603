"""Keeping stores sound: verifying every byte, repairing what is damaged, erasing withdrawn cases.

What belongs here: these acts over all modalities of a workspace. Not here: what damage is
(`storage.slices.verification`), the usual way in (`pipelines.ingest.tasks`).
"""

from collections.abc import Callable, Sequence

import pandas as pd

from pipelines.base.artefact_care import Damaged, asset_values
from pipelines.base.progress import ByteProgress
from pipelines.base.settings import InputError
from pipelines.base.workspace import Workspace
from pipelines.ingest import tasks as ingest
from pipelines.ingest.scanning import last_scan, scan_source
from storage.base.errors import IntegrityError, StorageError
from storage.base.modalities import MODALITIES
from storage.shards.fragments import MANIFEST
from storage.slices import layout, publishing
from storage.slices import writer as slice_writer
from storage.slices.manifest import StoreManifest
from storage.slices.verification import Verification, verify, verify_again, withdraw

Log = Callable[[str], None]


def is_published(workspace: Workspace, modality: str) -> bool:
    """Return whether a modality has a published store."""
    return workspace.stores.below(modality).size(MANIFEST) is not None


def published_modalities(workspace: Workspace) -> list[str]:
    """Return the modalities that have a published store, in canonical order."""
    return [name for name in MODALITIES if is_published(workspace, name)]


def known_modalities(workspace: Workspace) -> list[str]:
    """Return the modalities that have a published store, or once had one, in canonical order."""
    had = {name.removeprefix("slice_store/") for name, _ in asset_values(workspace)}
    planned = (name for name in had if workspace.stores.below(name).size(layout.LAYOUT) is not None)
    return sorted({*published_modalities(workspace), *planned} & set(MODALITIES), key=MODALITIES.index)


def verify_store(workspace: Workspace, modality: str, log: Log) -> Verification:
    """Verify one store and say what was found.

    Raises:
        StorageError: If it is not published.
        IntegrityError: If its manifest is damaged.
    """
    found = verify(workspace.stores, modality, ByteProgress(modality, log))
    state = f"{len(found.damages)} damaged" if found.damages else "whole"
    log(f"{modality}: {found.n_blobs} files, {found.n_bytes} bytes, {state}, {len(found.unnamed)} left over")
    for damage in found.damages:
        cases = found.cases.get(damage.part_id, ())
        log(f"  {damage.key}: {damage.problem}" + (f"; cases to ingest again: {', '.join(cases)}" if cases else ""))
    return found


def verify_stores(workspace: Workspace, modalities: Sequence[str], log: Log) -> pd.DataFrame:
    """Verify stores and return a row for each damage: modality, key, problem, part_id, cases."""
    tables = []
    for modality in modalities:
        try:
            tables.append(verify_store(workspace, modality, log).table())
        except StorageError as error:
            log(f"{modality}: {error}")
            row = {"modality": modality, "key": MANIFEST, "problem": str(error), "part_id": "", "cases": ""}
            tables.append(pd.DataFrame([row]))
    return pd.concat(tables, ignore_index=True)


def verify_and_repair(workspace: Workspace, modalities: Sequence[str], log: Log, *, repair: bool) -> list[Damaged]:
    """Verify stores and return what is damaged.

    Args:
        workspace: Where everything lies.
        modalities: Which stores; at least one.
        log: Where it is said.
        repair: Write what is damaged again, from the source.
    """
    table = verify_stores(workspace, modalities, log)
    mended = {name: repair and _repaired(workspace, name, log) for name in dict.fromkeys(table["modality"])}
    return [
        Damaged(f"slice_store/{row.modality}", str(row.key), str(row.problem), mended[str(row.modality)])
        for row in table.itertuples()
    ]


def _repaired(workspace: Workspace, modality: str, log: Log) -> bool:
    try:
        repair_store(workspace, modality, log)
    except (StorageError, OSError) as error:
        log(f"{modality}: not repaired: {error}")
        return False
    return True


def repair_store(workspace: Workspace, modality: str, log: Log) -> Verification:
    """Write what is damaged again, from the source's files, and verify.

    Raises:
        StorageError: If a file is no longer the one that was stored, or nothing is left to tell the store from.
    """
    found = _as_published(workspace, modality, log)
    if found is None:
        # The manifest repeats what plan and fragments say.
        _write_missing(workspace, modality, log)
        publishing.publish(workspace.stores, modality, layout.load_layout(workspace.stores, modality).parts)
        found = verify_store(workspace, modality, log)
    withdraw(workspace.stores, found)
    _write_missing(workspace, modality, log)
    return verify_again(workspace.stores, modality)


def _as_published(workspace: Workspace, modality: str, log: Log) -> Verification | None:
    """Return what is found in a store; None where its manifest is gone or altered."""
    if not is_published(workspace, modality):
        return None
    try:
        return verify_store(workspace, modality, log)
    except IntegrityError:
        return None


def _write_missing(workspace: Workspace, modality: str, log: Log) -> None:
    """Write what the plan lacks: withdrawn parts, and those that an ingest that was stopped has not come to."""
    plan = layout.load_layout(workspace.stores, modality).parts
    missing = [part.part_id for part in slice_writer.missing_parts(workspace.stores, modality, plan)]
    lost = ingest.write_store_parts(workspace, modality, missing, log).lost
    if lost:
        named = "\n  ".join(f"{case_id}: {reason}" for case_id, reason in lost.items())
        raise StorageError(
            f"slice store {modality}: expected the files that were stored, found that {len(lost)} are gone or have "
            f"changed since the manifest was made: run the ingest job, which leaves them out:\n  {named}"
        )
    log(f"{modality}: {len(missing)} parts written again")


def erase_cases(workspace: Workspace, case_ids: Sequence[str], log: Log) -> list[StoreManifest]:
    """Withdraw cases for good: they are rejected from now on, and their pixels leave the slice stores.

    What was made from them earlier (releases, caches, models, reports) stays until it is removed; the next run makes
    anew what depends on them.

    Returns:
        The published manifests of the stores that were rewritten.

    Raises:
        InputError: If a case is not in the manifest of the last scan.
    """
    last = last_scan(workspace, log)
    scan = pd.DataFrame({"case_id": [], "modality": []}) if last is None else last
    unknown = sorted(set(case_ids) - set(scan["case_id"]))
    if unknown:
        raise InputError(
            f"erase: expected cases of the last scan, found none named {', '.join(unknown[:9])}; give paths below the "
            "data without .npz"
        )
    workspace.withdrawn.write(sorted({*(workspace.withdrawn.read() or ()), *case_ids}))
    manifest = scan_source(workspace, log).value
    manifests = []
    for modality in sorted(set(scan.loc[scan["case_id"].isin(case_ids), "modality"]) & set(MODALITIES)):
        batches = ingest.plan_store(workspace, modality, manifest)
        written = [ingest.write_store_parts(workspace, modality, batch, log) for batch in batches]
        ingest.leave_out_lost(workspace, modality, manifest, written, log)
        plan = layout.load_layout(workspace.stores, modality).parts
        manifests.append(publishing.publish(workspace.stores, modality, plan))
        log(f"{modality}: published without the withdrawn cases")
    return manifests
