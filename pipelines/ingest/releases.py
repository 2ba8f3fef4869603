"""From the slice index to a release, its readers and its pixel statistics.

What belongs here: freezing a release, telling how it differs from the one before, reading its slices. Not here: who
gets which split (`storage.releases.splits`), what a release is (`storage.releases.release`).
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd

from medsam_core.imaging.pixel_statistics import balanced_statistics
from medsam_core.learning import stages
from medsam_core.learning.stages import Stage
from pipelines.base.asset_keys import recomputed
from pipelines.base.results import TaskResult
from pipelines.base.workspace import Workspace
from pipelines.ingest import unlabelled
from pipelines.ingest.unlabelled import chosen_unlabelled, distils_alone
from storage.base.artefacts import Artefact
from storage.base.errors import IntegrityError
from storage.base.modalities import MODALITIES
from storage.base.references import ArtefactRef
from storage.releases.reader import ReleaseReader
from storage.releases.release import (
    DISTILLATION,
    Release,
    duplicates,
    leakage,
    load_release,
    make_release,
    open_split,
    release_difference,
    save_release,
)
from storage.releases.splits import (
    SplitFractions,
    assign_splits,
    families,
    labelled_patients,
    left_to_draw,
    patients_by_split,
    patients_to_draw,
    require_all_splits,
)
from storage.sources.manifest_table import roles

Log = Callable[[str], None]


def _pinned_release(workspace: Workspace) -> Artefact | None:
    wanted = workspace.profile.release
    if wanted == "latest":
        return None
    return workspace.artefacts.get(ArtefactRef("release", wanted, {}, reused=True))


def _assigned(workspace: Workspace, table: pd.DataFrame) -> dict[str, str]:
    """Give each labelled patient of a slice index its split, and record those that are new.

    Patients of `split` folders are divided. Others train, unless they share content with one that is held out. A
    patient whose ground truth is blank throughout takes no place in a split: it trains, where nothing is drawn of it.

    Raises:
        StorageError: If none would train, none select or none test; nothing is recorded then.
    """
    recorded = workspace.splits.read() or {}
    split = workspace.profile.split
    divided, tied = patients_to_draw(table[roles(table) == "split"]), families(table)
    splits = assign_splits(divided, recorded, SplitFractions(split.validation, split.test), split.seed, tied)
    patients = labelled_patients(table)["group"].astype("str").unique()
    splits |= {patient: "train" for patient in sorted(patients) if patient not in splits}
    if workspace.profile.release == "latest" and not distils_alone(workspace, table):
        blank = set(patients) - set(patients_to_draw(table)["group"].astype("str"))
        require_all_splits(left_to_draw(table, splits), splits, tied, _besides(table, len(blank)))
    if splits != recorded:
        workspace.splits.write({**recorded, **splits})
    return {str(patient): splits[str(patient)] for patient in patients}


def _besides(index: pd.DataFrame, n_blank: int) -> str:
    """Say which patients of an index cannot train, select or test."""
    labelled = index.loc[index["gt_array"] != "", "group"]
    n_without = index.loc[~index["group"].isin(labelled), "group"].nunique()
    told = f"; {n_blank} more have gts that are blank, of which nothing is drawn" if n_blank else ""
    return told + (
        f"; {n_without} more have no gts in the file of their imgs (distillation alone can use them: source.unlabelled)"
        if n_without
        else ""
    )


def freeze_release(workspace: Workspace, index: ArtefactRef, log: Log) -> TaskResult[ArtefactRef]:
    """Choose the accepted slices with ground truth, give each patient its recorded split, and freeze the choice."""
    table = pd.read_parquet(workspace.artefacts.get(index).path / "slice_index.parquet")
    used = _assigned(workspace, table)
    extra = chosen_unlabelled(workspace, table, used, log)
    release = make_release(table, used, extra.table)

    def build(folder: Path) -> dict[str, object]:
        save_release(folder, release)
        found = {"fingerprints": release.fingerprints, "leaks": leakage(release)[:50], "slices": len(release.table)}
        to_train = (release.table["split"] == "train") & (release.table["fg_px"] > 0)
        return {**found, **unlabelled.facts(release.unlabelled, int(to_train.sum()))}

    left_out = release.left_out.to_dict("records")
    made = workspace.artefacts.make(
        "release", {"fingerprints": release.fingerprints, "left_out": left_out, "version": 4}, build
    )
    pinned = _pinned_release(workspace)
    chosen = pinned or made
    counts = release.table.groupby(["modality", "split"], observed=True)["case_id"].agg(slices="size", cases="nunique")
    twins = duplicates(table[table["gt_array"] != ""])
    strays = _strays(load_release(pinned.path) if pinned else release, table)
    notes = {
        "slices": chosen.info["slices"],
        "by modality and split": counts.reset_index(),
        **_patients(table, used),
        "leaks between splits": "\n".join(chosen.info["leaks"]) or "none",
        "content that several cases share": twins.head(200) if len(twins) else "none",
        **_left_out(release, table),
        **unlabelled.told(chosen.reference()),
        **({"without labels, left out": extra.left_out.head(200)} if len(extra.left_out) else {}),
        "recorded splits": workspace.splits.path,
        **_moves(workspace, made, pinned, release, log),
    }
    reference = chosen.reference()
    value = replace(reference, info={**reference.info, "strays": strays}) if strays else reference
    return TaskResult(value, chosen.fingerprint, int(not made.reused), int(made.reused), notes)


def _strays(release: Release, index: pd.DataFrame) -> list[str]:
    """Return a line for each case of a release that is held out, though its folder is now one that only trains."""
    only_trains = index.loc[roles(index) == "train", "case_id"]
    held_out = release.table.loc[release.table["split"] != "train", ["case_id", "split"]].drop_duplicates("case_id")
    found = held_out[held_out["case_id"].isin(only_trains)]
    return [f"{case_id} in {split}" for case_id, split in zip(found["case_id"], found["split"], strict=True)]


def _left_out(release: Release, index: pd.DataFrame) -> dict[str, str | pd.DataFrame]:
    """Say what is left out of a release and why, and, where folders have roles, how many cases came from each."""
    table = release.left_out
    doubled, strays = table[table["kept_in"] != ""], table[table["kept_in"] == ""]
    notes = {"left out, for a more held out split has them": doubled if len(doubled) else "none"}
    if not (roles(index) == "train").any():
        return notes
    cases = release.table.assign(role=roles(release.table)).groupby(["role", "split"])["case_id"].nunique()
    return notes | {
        "left out, for their folder only trains and their patient is held out": strays if len(strays) else "none",
        "cases by role and split": cases.rename("cases").reset_index(),
    }


def _patients(index: pd.DataFrame, splits: dict[str, str]) -> dict[str, str | pd.DataFrame]:
    counts = patients_by_split(left_to_draw(index, splits), splits)
    blank = sorted(splits.keys() - set(patients_to_draw(index)["group"].astype("str")))
    untested = counts[counts["test"] == 0]
    totals = untested["train"] + untested["validation"]
    named = [f"{name} ({total} patients)" for name, total in zip(untested["modality"], totals, strict=True)]
    return {
        "patients by modality and split": counts,
        "patients whose gts are blank, and so count for no split": ", ".join(blank[:20]) or "none",
        "modalities without a test patient, and so without a score of their own": ", ".join(named) or "none",
    }


def _moves(
    workspace: Workspace, made: Artefact, pinned: Artefact | None, release: Release, log: Log
) -> dict[str, str | pd.DataFrame]:
    """Say how the newest release differs from the one in use, what moving to it makes anew, and note which is used."""
    before = pinned or _adopted(workspace)
    workspace.adopted.write({"fingerprint": (pinned or made).fingerprint})
    if before is None or before.fingerprint == made.fingerprint:
        return {}
    change = release_difference(load_release(before.path), release)
    listing = ", ".join(f"{len(cases)} cases {kind}" for kind, cases in change.items())
    anew = recomputed(before.info["fingerprints"], release.fingerprints)
    rows = [(case_id, kind) for kind, cases in change.items() for case_id in cases]
    if pinned is not None:
        log(f"training stays on release {pinned.fingerprint[:16]}; newer: {listing}")
        told = {"a newer release": f"{made.fingerprint}: {listing}; set `release` in the profile to adopt it"}
    else:
        log(f"release {made.fingerprint[:16]} follows {before.fingerprint[:16]}: {listing}")
        told = {"since the last release": f"{before.fingerprint}: {listing}"}
    return {
        **told,
        "changed cases": pd.DataFrame(rows, columns=["case_id", "change"]).head(200),
        "made anew by adopting it": "\n".join(f"- {line}" for line in anew) or "nothing",
    }


def _adopted(workspace: Workspace) -> Artefact | None:
    adopted = workspace.adopted.read()
    if adopted is None:
        return None
    reference = ArtefactRef("release", adopted["fingerprint"], {}, reused=True)
    try:
        return workspace.artefacts.get(reference)
    except IntegrityError:
        return None


def release_reader(workspace: Workspace, release: ArtefactRef, split: str) -> ReleaseReader:
    """Return a reader of one split's slices, rows in release order."""
    return ReleaseReader(workspace.stores, open_split(workspace.artefacts.get(release).path, split))


def split_fingerprint(release: ArtefactRef, split: str) -> str:
    """Return the fingerprint of one split of a release, on which everything made from that split alone depends."""
    return str(release.info["fingerprints"][split])


def drawn_split(release: ArtefactRef, stage: Stage) -> str:
    """Return the name of what a stage draws: the training split, with slices without ground truth if it takes them."""
    extended = stage.draws_unlabelled and DISTILLATION in release.info["fingerprints"]
    return DISTILLATION if extended else "train"


def stage_reader(workspace: Workspace, release: ArtefactRef, stage: Stage) -> ReleaseReader:
    """Return a reader of what a stage draws."""
    return release_reader(workspace, release, drawn_split(release, stage))


def measure_pixels(workspace: Workspace, release: ArtefactRef) -> TaskResult[ArtefactRef]:
    """Compute the student's normalisation over what it is distilled on."""
    stage = stages.DISTILLATION
    made_from = {"train": split_fingerprint(release, drawn_split(release, stage)), "version": 1}

    def build(_folder: Path) -> dict[str, object]:
        reader = stage_reader(workspace, release, stage)
        codes = reader.columns.codes("modality")
        mean, std = balanced_statistics((MODALITIES[code], reader.read(row)[0]) for row, code in enumerate(codes))
        return {"mean": mean.tolist(), "std": std.tolist(), "slices": len(reader)}

    made = workspace.artefacts.make("statistics", made_from, build)
    notes = {
        "mean": ", ".join(f"{value:.4f}" for value in made.info["mean"]),
        "std": ", ".join(f"{value:.4f}" for value in made.info["std"]),
        "slices": made.info["slices"],
    }
    return TaskResult(made.reference(), made.fingerprint, int(not made.reused), int(made.reused), notes)
