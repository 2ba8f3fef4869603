"""Images without ground truth on their way into a release.

What belongs here: choosing them, recording their patients, telling of them. Not here: which may be used
(`storage.releases.unlabelled`), the release (`pipelines.ingest.releases`).
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

from pipelines.base.workspace import Workspace
from storage.base.atomic import read_json, write_json
from storage.base.fingerprints import combine
from storage.base.references import ArtefactRef
from storage.releases.columns import SliceColumns
from storage.releases.reader import ReleaseReader
from storage.releases.splits import patients_to_draw
from storage.releases.unlabelled import (
    Unlabelled,
    choose_unlabelled,
    copies_of_held_out,
    of_held_out_patients,
    without_labels,
)

Log = Callable[[str], None]

_COPIES = "copies.json"


def distils_alone(workspace: Workspace, index: pd.DataFrame) -> bool:
    """Return whether there is something for distillation to draw, and nothing with a label."""
    return workspace.profile.source.unlabelled and patients_to_draw(index).empty and not without_labels(index).empty


def chosen_unlabelled(workspace: Workspace, index: pd.DataFrame, splits: Mapping[str, str], log: Log) -> Unlabelled:
    """Return the slices without ground truth that distillation draws; none where the profile leaves them out.

    Their patients are recorded in training, for no model may be tested on a patient whom it was distilled on. Where
    nothing has a label there is no such test, and nothing is recorded.

    Args:
        workspace: Where everything lies.
        index: The slice index.
        splits: Patient -> split, of the patients with ground truth.
        log: Where it is said.
    """
    if not workspace.profile.source.unlabelled or without_labels(index).empty:
        return Unlabelled(index[:0], pd.DataFrame(columns=["case_id", "reason"]))
    recorded = workspace.splits.read() or {}
    known = {**recorded, **splits}
    chosen = choose_unlabelled(index, known, _copies(workspace, index, known))
    patients = set(chosen.table["group"].astype("str"))
    if not distils_alone(workspace, index) and not patients <= recorded.keys():
        workspace.splits.write({**recorded, **dict.fromkeys(sorted(patients - recorded.keys()), "train")})
    cases = chosen.table["case_id"].nunique()
    log(f"without labels: {cases} cases for distillation alone, {len(chosen.left_out)} left out")
    return chosen


def _copies(workspace: Workspace, index: pd.DataFrame, splits: Mapping[str, str]) -> list[str]:
    """Return what `copies_of_held_out` finds, kept for as long as the cases and their splits are the same."""
    held_out = of_held_out_patients(index, splits)
    made_from = {
        "version": 1,
        "held_out": _named(index[held_out]),
        "candidates": _named(without_labels(index[~held_out])),
    }

    def build(folder: Path) -> dict[str, int]:
        reader = ReleaseReader(workspace.stores, SliceColumns.of(index))
        found = copies_of_held_out(index, splits, lambda rows: reader.read_case(rows)[0])
        write_json(folder / _COPIES, found)
        return {"copies": len(found)}

    found: list[str] = read_json(workspace.artefacts.make("image_copies", made_from, build).path / _COPIES)
    return found


def _named(table: pd.DataFrame) -> str:
    cases = table[["case_id", "content_hash"]].drop_duplicates().sort_values("case_id")
    return combine((cases["case_id"] + "=" + cases["content_hash"]).astype("str").tolist())


def facts(release_unlabelled: pd.DataFrame | None, n_drawable: int) -> dict[str, int]:
    """Return what a release's reference says of slices without ground truth; nothing if it has none.

    Args:
        release_unlabelled: Those of the release.
        n_drawable: Slices of the training split that show a label.
    """
    if release_unlabelled is None:
        return {}
    cases = int(release_unlabelled["case_id"].nunique())
    return {"unlabelled_cases": cases, "unlabelled_slices": len(release_unlabelled), "labelled_to_train": n_drawable}


def told(release: ArtefactRef) -> dict[str, str]:
    """Return what pages and reports show of a release's cases without ground truth; nothing if it has none."""
    info = release.info
    if "unlabelled_cases" not in info:
        return {}
    return {
        "without labels, in distillation alone": f"{info['unlabelled_cases']} cases, {info['unlabelled_slices']} slices"
    }


def has_labels(release: ArtefactRef) -> bool:
    """Return whether a release has a labelled slice to train on; one that was frozen without a count has."""
    return bool(release.info.get("labelled_to_train", 1))
