"""Cases that are lost since the last scan.

What belongs here: counting lost cases, and refusing a source that lost many, such as a folder whose mount is missing.
Not here: scanning (`storage.sources.raw_manifest`).
"""

import pandas as pd

from storage.base.errors import StorageError
from storage.base.modalities import MODALITIES


class LossError(StorageError):
    """Half or more of the cases of a source, or of one of its modalities, are lost."""


def losses(before: pd.DataFrame, now: pd.DataFrame) -> pd.DataFrame:
    """Count the accepted cases of a manifest that are lost in a later manifest.

    Returns:
        Columns modality, before, gone (not listed), rejected (listed, but no longer good), in canonical order, for
        modalities with accepted cases before.
    """
    accepted = before.loc[before["status"] == "accepted", ["case_id", "modality"]]
    joined = accepted.merge(now[["case_id", "status"]], on="case_id", how="left")
    gone = joined["status"].isna()
    spoilt = joined["status"] == "rejected"
    counted = pd.DataFrame({"modality": joined["modality"], "before": True, "gone": gone, "rejected": spoilt})
    table = counted.groupby("modality").sum().astype("int64")
    return table.loc[[name for name in MODALITIES if name in table.index]].reset_index()


def require_kept(before: pd.DataFrame, now: pd.DataFrame, place: str, remedy: str) -> None:
    """Refuse a manifest in which half or more of the cases of the one before, or of a modality of it, are lost.

    Args:
        before: The last manifest, less cases that were withdrawn since.
        now: The new one.
        place: What was scanned.
        remedy: What a user should do if the loss is intended.

    Raises:
        LossError: If half or more are lost; the message gives the counts by modality.
    """
    table = losses(before, now)
    lost = table["gone"] + table["rejected"]
    much = table[2 * lost >= table["before"]] if 2 * lost.sum() < table["before"].sum() else table[lost > 0]
    if much.empty:
        return
    counts = ", ".join(
        f"{row.modality} {row.before}, of which {row.gone} gone and {row.rejected} rejected now"
        for row in much.itertuples()
    )
    raise LossError(
        f"{place}: expected the cases of the last scan, found half or more of them lost: {counts}. Nothing was "
        f"changed. Mount or restore what is missing and run again; {remedy}"
    )
