"""Predictions, baselines and reports. What belongs here: who is predicted, what a report shows and logs.

Not here: how a case becomes rows (`pipelines.evaluation.scoring`), or means over rows (`medsam_core.reporting`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from pipelines.base.results import Link, Picture, TaskResult
from pipelines.base.tracking import TrackedRun, Tracker
from pipelines.base.values import TeacherRef
from pipelines.base.variants import PROPOSED, Variant
from pipelines.base.workspace import Workspace
from pipelines.evaluation.predictors import box_predictors, device_of, predictor
from pipelines.evaluation.reports import report_metrics, write_report
from pipelines.ingest.releases import release_reader, split_fingerprint
from pipelines.training.students import parent_run
from pipelines.training.training_cases import training_cases_file
from storage.base.artefacts import Artefact
from storage.base.references import ArtefactRef

if TYPE_CHECKING:
    from medsam_core.models.segmenter import Segmenter
    from pipelines.evaluation.scoring import EvaluationCase, Predict

Log = Callable[[str], None]

SPLITS = ("validation", "test")
"""Validation chooses, test is reported; training cases are not predicted."""

PREDICTION_VERSION = 1
"""Raised by hand whenever the same model predicts or scores otherwise."""

CONSTANT_GREY = 127
"""What every pixel is when the student is shown no image."""


@dataclass(frozen=True)
class BaselineInputs:
    """Values of the assets that the baselines read."""

    release: ArtefactRef
    statistics: ArtefactRef
    teacher: TeacherRef
    student: ArtefactRef


@dataclass(frozen=True)
class ReportInputs:
    """Values of the assets that a report reads."""

    release: ArtefactRef
    student: ArtefactRef
    predictions: ArtefactRef
    baselines: ArtefactRef


def _evaluated(release: ArtefactRef) -> dict[str, object]:
    """Return what predictions depend on besides the predictor."""
    splits = {split: split_fingerprint(release, split) for split in SPLITS}
    return {"splits": splits, "version": PREDICTION_VERSION}


def _cases(workspace: Workspace, release: ArtefactRef) -> Iterator["EvaluationCase"]:
    from pipelines.evaluation.scoring import cases_of_release

    for split in SPLITS:
        yield from cases_of_release(release_reader(workspace, release, split), split)


def _load(workspace: Workspace, reference: ArtefactRef, name: str = "model") -> "Segmenter":
    from medsam_core.models.checkpoints import load_model

    return load_model(workspace.artefacts.get(reference).path / f"{name}.safetensors")


def predict_student(
    workspace: Workspace,
    variant: Variant,
    release: ArtefactRef,
    student: ArtefactRef,
    log: Log,
    *,
    weights: str = "model",
) -> TaskResult[ArtefactRef]:
    """Predict and score validation and test cases with a variant's student.

    Args:
        workspace: Where everything lies.
        variant: Whose student.
        release: The release.
        student: The fine-tuned model's reference.
        log: Where progress is said.
        weights: Which of its weights: `model`, or those kept after an epoch, `epoch_XX`.
    """
    made_from = {"model": student.fingerprint, "weights": weights, **_evaluated(release)}

    def build(folder: Path) -> dict[str, object]:
        from pipelines.evaluation.scoring import predict_and_score

        model = _load(workspace, student, weights)
        predict = {"student": predictor(model, device=device_of(workspace))}
        rows, _ = predict_and_score(_cases(workspace, release), predict, folder, log)
        _draw(workspace, release, folder, "student")
        return {"cases": int(rows["case_id"].nunique()), **_means(rows)}

    made = workspace.artefacts.make("predictions", made_from, build)
    log(f"{variant.name} {weights}: {made.info['cases']} cases predicted")
    return _prediction_result(made, "student")


def predict_baselines(workspace: Workspace, inputs: BaselineInputs, log: Log) -> TaskResult[ArtefactRef]:
    """Predict and score what the student is held against."""
    profile = workspace.profile
    made_from = {
        "teacher": inputs.teacher.fingerprint,
        "student": inputs.student.fingerprint,
        "untrained": {
            "student": profile.student.model_dump(mode="json"),
            "init_seed": profile.seeds.init,
            "statistics": inputs.statistics.fingerprint,
        },
        "constant_grey": CONSTANT_GREY,
        **_evaluated(inputs.release),
    }

    def build(folder: Path) -> dict[str, object]:
        from medsam_core.models.segmenter import build_student
        from pipelines.evaluation.scoring import predict_and_score

        device = device_of(workspace)
        student = _load(workspace, inputs.student)
        pixels = inputs.statistics.info
        untrained = build_student(profile.student, pixels["mean"], pixels["std"], profile.seeds.init)
        predictors: dict[str, Predict] = {
            "teacher": predictor(_load(workspace, inputs.teacher), device=device),
            **box_predictors(),
            "untrained_student": predictor(untrained, device=device),
            "student_no_image": predictor(student, constant_image=CONSTANT_GREY, device=device),
        }
        rows, _ = predict_and_score(_cases(workspace, inputs.release), predictors, folder, log)
        _draw(workspace, inputs.release, folder, "teacher")
        return {"cases": int(rows["case_id"].nunique()), **_means(rows)}

    made = workspace.artefacts.make("predictions", made_from, build)
    return _prediction_result(made, "teacher")


def _means(rows: pd.DataFrame) -> dict[str, object]:
    """Return the mean of modalities of the case DSC by predictor, for each split."""
    by_modality = rows.groupby(["split", "predictor", "modality"])["dsc"].mean()
    means = by_modality.groupby(level=["split", "predictor"]).mean()
    names = rows["predictor"].unique()
    return {
        f"{split}_dsc": {str(name): float(means[split, name]) for name in names if (split, name) in means.index}
        for split in SPLITS
    }


def _prediction_result(made: Artefact, shown: str) -> TaskResult[ArtefactRef]:
    notes = {
        "cases": made.info["cases"],
        **{
            f"{split} DSC, mean of modalities, {name}": value
            for split in SPLITS
            for name, value in made.info[f"{split}_dsc"].items()
        },
        f"{shown} (magenta) over ground truth (yellow)": Picture(made.path / "pictures.png"),
        "rows": made.path / "cases.parquet",
    }
    return TaskResult(made.reference(), made.fingerprint, int(not made.reused), int(made.reused), notes)


def _draw(workspace: Workspace, release: ArtefactRef, folder: Path, name: str) -> None:
    """Draw one test case of each modality: the middle slice of a volume."""
    import numpy as np

    from pipelines.base import pictures
    from pipelines.evaluation.scoring import cases_of_release, segs_file

    tiles = {}
    for case in cases_of_release(release_reader(workspace, release, "test"), "test"):
        if case.identity.modality in tiles:
            continue
        with np.load(segs_file(folder / "segs" / name, case.identity.case_id), allow_pickle=False) as content:
            segs = content["segs"]
        z = int(np.argmax(case.gts.reshape(len(case.gts), -1).astype(bool).sum(1))) if case.is_3d else None
        layers = (case.imgs, case.gts, segs) if z is None else (case.imgs[z], case.gts[z], segs[z])
        tiles[case.identity.modality] = (*layers, case.identity.case_id)
    if tiles:
        pictures.prediction_sheet(list(tiles.values()), folder / "pictures.png")


def report(workspace: Workspace, variant: Variant, inputs: ReportInputs, log: Log) -> TaskResult[ArtefactRef]:
    """Put a variant beside the baselines, log it to MLflow, and offer the proposed model to the registry."""
    made_from = {
        "predictions": inputs.predictions.fingerprint,
        "baselines": inputs.baselines.fingerprint,
        "version": PREDICTION_VERSION,
    }
    own = workspace.artefacts.get(inputs.predictions).path
    baselines = workspace.artefacts.get(inputs.baselines).path

    def build(folder: Path) -> dict[str, object]:
        rows = pd.concat([pd.read_parquet(path / "cases.parquet") for path in (own, baselines)], ignore_index=True)
        write_report(rows, folder)
        return _means(rows)

    made = workspace.artefacts.make("report", made_from, build)
    tracker = Tracker(workspace.settings)
    run = log_report(tracker, workspace, f"{variant.name}/evaluation", inputs.release, made, own / "pictures.png")
    notes: dict[str, object] = {
        "test": pd.read_csv(made.path / "comparison.csv"),
        "pictures": Picture(own / "pictures.png"),
        "report": made.path,
        "MLflow run": Link(run.url),
    }
    if variant.name == PROPOSED.name:
        student = workspace.artefacts.get(inputs.student).path
        score = made.info["validation_dsc"]["student"]
        beside = filter(None, [training_cases_file(student)])
        version, is_champion = tracker.register(run, student / "model.safetensors", score, beside=beside)
        notes["registered version"] = f"{version}{' (champion)' if is_champion else ''}"
    log(f"{variant.name}: test DSC {made.info['test_dsc']}")
    return TaskResult(made.reference(), made.fingerprint, int(not made.reused), int(made.reused), notes)


def log_report(
    tracker: Tracker, workspace: Workspace, name: str, release: ArtefactRef, made: Artefact, picture: Path
) -> TrackedRun:
    """Log a report to MLflow as a run of its own, once."""
    splits = {f"medsam.{split}": split_fingerprint(release, split) for split in SPLITS}
    run = tracker.open_run(name, made.fingerprint, parent=lambda: parent_run(tracker, workspace, release), tags=splits)
    if not run.finished:
        tracker.log_metrics(run, report_metrics(made.path))
        tracker.log_files(run, made.path, "report")
        if picture.is_file():
            tracker.log_picture(run, picture, "pictures")
        tracker.close_run(run)
    return run


def compare_variants(
    workspace: Workspace, release: ArtefactRef, proposed: ArtefactRef, ablations: dict[str, ArtefactRef], log: Log
) -> TaskResult[ArtefactRef]:
    """Put the ablations beside the proposed model's weights of the same epoch."""
    epoch = workspace.profile.ablation_epochs
    at_epoch = predict_student(workspace, PROPOSED, release, proposed, log, weights=f"epoch_{epoch:02d}")
    sources = {f"proposed epoch {epoch}": at_epoch.value, **ablations}
    made_from = {
        "predictions": {name: value.fingerprint for name, value in sources.items()},
        "version": PREDICTION_VERSION,
    }

    def build(folder: Path) -> dict[str, object]:
        tables = []
        for name, value in sources.items():
            rows = pd.read_parquet(workspace.artefacts.get(value).path / "cases.parquet")
            tables.append(rows.assign(predictor=name))
        rows = pd.concat(tables, ignore_index=True)
        write_report(rows, folder)
        return _means(rows)

    made = workspace.artefacts.make("report", made_from, build)
    tracker = Tracker(workspace.settings)
    picture = workspace.artefacts.get(at_epoch.value).path / "pictures.png"
    run = log_report(tracker, workspace, "ablations/evaluation", release, made, picture)
    notes = {
        "test": pd.read_csv(made.path / "comparison.csv"),
        "fine-tuning epochs of every variant": epoch,
        "report": made.path,
        "MLflow run": Link(run.url),
    }
    parts = int(not made.reused) + at_epoch.made
    return TaskResult(made.reference(), made.fingerprint, parts, 2 - parts, notes)


def report_registered(workspace: Workspace, release: ArtefactRef, log: Log) -> TaskResult[ArtefactRef]:
    """Score the model behind the `champion` alias on the release.

    Raises:
        FileNotFoundError: If no model is registered yet.
    """
    tracker = Tracker(workspace.settings)
    champion = tracker.champion()
    if champion is None:
        raise FileNotFoundError("registered model: expected an alias `champion`, found none; run full_pipeline first")
    version = str(champion.version)
    made_from = {"run": champion.run_id, "registered_version": version, **_evaluated(release)}

    def build(folder: Path) -> dict[str, object]:
        from medsam_core.models.checkpoints import load_model
        from pipelines.base.tracking import champion_uri, download_model
        from pipelines.evaluation.scoring import predict_and_score

        file = download_model(champion_uri(workspace.settings), workspace.settings.tracking_uri, folder / "download")
        predict = {"student": predictor(load_model(file), device=device_of(workspace))}
        rows, _ = predict_and_score(_cases(workspace, release), predict, folder, log)
        write_report(rows, folder)
        _draw(workspace, release, folder, "student")
        return {"version": version, **_means(rows)}

    made = workspace.artefacts.make("registered_report", made_from, build)
    name = f"registered model, version {version}"
    run = log_report(tracker, workspace, name, release, made, made.path / "pictures.png")
    notes = {
        "version": version,
        "test": pd.read_csv(made.path / "comparison.csv"),
        "pictures": Picture(made.path / "pictures.png"),
        "MLflow run": Link(run.url),
    }
    return TaskResult(made.reference(), made.fingerprint, int(not made.reused), int(made.reused), notes)
