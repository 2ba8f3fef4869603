"""Cases that are lost since the last scan.

What belongs here: counting lost cases, and refusing a source that lost many, such as a folder whose mount is missing.
Not here: scanning (`storage.sources.raw_manifest`).
"""

from collections import Counter
from collections.abc import Iterable
from typing import Final

import pandas as pd

from storage.base.errors import StorageError
from storage.base.modalities import MODALITIES
from storage.sources.manifest_table import with_places

HANDFUL: Final = 3
"""A folder that held so many cases, here or in its folders, is not emptied by chance."""

_NAMED: Final = 20
"""Folders that a message names."""


class LossError(StorageError):
    """Half or more of the cases of a source, or of one of its modalities, are lost, or all cases of a folder."""


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


def emptied_folders(before: Iterable[str], now: Iterable[str]) -> dict[str, int]:
    """Return folder -> cases before, for folders that held a handful of cases and hold none now.

    Args:
        before: Ids of the cases before, which are paths below the place with `/` between their parts.
        now: Ids of the cases now.

    Returns:
        The folders by name; of folders in each other only the outermost. The place itself is no such folder.
    """
    held, holds = _cases_by_folder(before), _cases_by_folder(now)
    emptied = {folder for folder, count in held.items() if count >= HANDFUL and folder not in holds}
    return {folder: held[folder] for folder in sorted(emptied) if not emptied.intersection(_above(folder))}


def folders_told(folders: dict[str, int]) -> str:
    """Return emptied folders as a message names them: each with its cases, the first few."""
    named = [f"{folder}/ ({count} cases)" for folder, count in list(folders.items())[:_NAMED]]
    more = [f"and {len(folders) - _NAMED} folders more"] if len(folders) > _NAMED else []
    return ", ".join([*named, *more])


def _cases_by_folder(case_ids: Iterable[str]) -> Counter[str]:
    """Count the cases below each folder, at every depth."""
    direct = Counter(case_id.rpartition("/")[0] for case_id in case_ids)
    counted: Counter[str] = Counter()
    for folder, count in direct.items():
        for holder in filter(None, (folder, *_above(folder))):
            counted[holder] += count
    return counted


def _above(folder: str) -> list[str]:
    """Return the folders that a folder lies in, the place itself left out."""
    parts = folder.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


def _moved(before: pd.DataFrame, now: pd.DataFrame) -> "pd.Series[bool]":
    """Return for each case of `before` whether a case that is new in `now` has its content."""
    if "content_hash" not in before or "content_hash" not in now:
        return pd.Series(data=False, index=before.index)
    return before["content_hash"].isin(now.loc[~now["case_id"].isin(before["case_id"]), "content_hash"])


def _emptied(before: pd.DataFrame, now: pd.DataFrame) -> dict[str, int]:
    """Return the folders whose accepted cases are all lost; one whose cases were moved elsewhere is none.

    Of a source of several folders each is judged alone, named in front of what lies in it, or by its name if all of it
    is lost. A case that another folder has now is not lost.
    """
    before, now = with_places(before), with_places(now)
    good, still = (table[table["status"] == "accepted"] for table in (before, now))
    good = good[~_moved(good, still)]
    emptied: dict[str, int] = {}
    for place in good["folder"].unique().tolist():
        own = good[good["folder"] == place]
        left = still["case_id"].isin(own["case_id"])
        if place and len(own) >= HANDFUL and not left.any():
            emptied[str(place)] = len(own)
            continue
        # A place that is not scanned by this name any more is compared with all there is.
        here = still["folder"] == place
        found = emptied_folders(own["case_id"], still.loc[here | left if here.any() else still.index, "case_id"])
        emptied |= {f"{place}/{folder}" if place else folder: count for folder, count in found.items()}
    return emptied


def require_kept(before: pd.DataFrame, now: pd.DataFrame, place: str, remedy: str) -> None:
    """Refuse a manifest in which half or more of the cases of the one before, or of a modality, or a folder are lost.

    Args:
        before: The last manifest, less cases that were withdrawn since.
        now: The new one.
        place: What was scanned.
        remedy: What a user should do; ends the message.

    Raises:
        LossError: If half or more are lost, or all of a folder that held a handful; the message gives the counts by
            modality and names the folders.
    """
    table = losses(before, now)
    lost = table["gone"] + table["rejected"]
    much = table[2 * lost >= table["before"]] if 2 * lost.sum() < table["before"].sum() else table[lost > 0]
    folders = _emptied(before, now)
    if much.empty and not folders:
        return
    counts = ", ".join(
        f"{row.modality} {row.before}, of which {row.gone} gone and {row.rejected} rejected now"
        for row in much.itertuples()
    )
    found = [f"half or more of them lost: {counts}"] if len(much) else []
    if folders:
        found.append(f"folders that held cases and hold none now: {folders_told(folders)}")
    raise LossError(
        f"{place}: expected the cases of the last scan, found {'; '.join(found)}. Nothing was changed. {remedy}"
    )
