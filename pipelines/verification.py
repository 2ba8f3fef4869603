"""Verifying all state of a workspace. What belongs here: verifying stores, caches and artefacts in turn.

Not here: finding and repairing damage; each kind of state has its own module for this.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict

import pandas as pd

from pipelines.base.artefact_care import Damaged, verify_artefacts, verify_records
from pipelines.base.workspace import Workspace
from pipelines.ingest.store_care import known_modalities, verify_and_repair
from pipelines.teacher.cache_verification import verify_caches

Log = Callable[[str], None]


def verify_workspace(workspace: Workspace, log: Log, *, modalities: Sequence[str] = (), repair: bool = False) -> bool:
    """Read all state again, log one line for each store, cache and artefact, and list damaged files.

    Args:
        workspace: The workspace.
        log: Receives the lines.
        modalities: Verify only the stores of these modalities; by default all state.
        repair: Write damaged parts of stores again from the source; withdraw damaged caches and artefacts, so that the
            next run makes exactly these again.

    Returns:
        True if no damage is left.

    Raises:
        FileNotFoundError: If there is no state to verify.
    """
    stores = list(modalities) or known_modalities(workspace)
    if not stores and not workspace.artefacts.root.is_dir():
        raise FileNotFoundError(f"expected state in {workspace.settings.state}, found none; run a job")
    damaged: list[Damaged] = verify_and_repair(workspace, stores, log, repair=repair) if stores else []
    if not modalities:
        damaged += verify_caches(workspace, log, repair=repair)
        damaged += verify_artefacts(workspace, log, repair=repair)
        damaged += verify_records(workspace, log, repair=repair)
    left = sum(not item.mended for item in damaged)
    if damaged:
        log("")
        log(pd.DataFrame([asdict(item) for item in damaged]).to_string(index=False))
    log(f"{len(damaged)} damaged, {len(damaged) - left} repaired or withdrawn, {left} left")
    return not left
