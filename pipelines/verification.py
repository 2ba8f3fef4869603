"""Verifying all that a workspace holds. What belongs here: putting stores, caches and artefacts together.

Not here: what damage is, and what is done about it, which each kind of state knows for itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict

import pandas as pd

from pipelines.base.artefact_care import Damaged, verify_artefacts
from pipelines.base.workspace import Workspace
from pipelines.ingest.store_care import known_modalities, verify_and_repair
from pipelines.teacher.cache_verification import verify_caches

Log = Callable[[str], None]


def verify_workspace(workspace: Workspace, log: Log, *, modalities: Sequence[str] = (), repair: bool = False) -> bool:
    """Read all state again, say in a line what was found of each piece, and list what is damaged.

    Args:
        workspace: Where everything lies.
        log: Where it is said.
        modalities: Only the stores of these; by default everything.
        repair: Write stores again from the source; withdraw damaged caches and artefacts, so that the next run makes
            exactly them again.

    Returns:
        Whether nothing damaged is left.

    Raises:
        FileNotFoundError: If there is nothing to verify.
    """
    stores = list(modalities) or known_modalities(workspace)
    if not stores and not workspace.artefacts.root.is_dir():
        raise FileNotFoundError(f"expected state in {workspace.settings.state}, found none; run a job")
    damaged: list[Damaged] = verify_and_repair(workspace, stores, log, repair=repair) if stores else []
    if not modalities:
        damaged += verify_caches(workspace, log, repair=repair)
        damaged += verify_artefacts(workspace, log, repair=repair)
    left = sum(not item.mended for item in damaged)
    if damaged:
        log("")
        log(pd.DataFrame([asdict(item) for item in damaged]).to_string(index=False))
    log(f"{len(damaged)} damaged, {len(damaged) - left} repaired or withdrawn, {left} left")
    return not left
