"""Reports of variants: each one with the baselines, and all variants in one table.

What belongs here: the scores in a report, and its page. Not here: scoring (`scores`), the tables (`reports`), the
registered model (`registered`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipelines.base.results import Link, Picture, TaskResult
from pipelines.base.variants import PROPOSED, Variant
from pipelines.base.workspace import Workspace
from pipelines.evaluation.predictions import predict_student
from pipelines.evaluation.report_files import TEACHER, read_comparison, write_facts
from pipelines.evaluation.report_logging import log_report
from pipelines.evaluation.reports import choosing_means, write_report
from pipelines.evaluation.scores import make_scores, newly_made, open_scores
from pipelines.evaluation.versions import scored_from
from pipelines.ingest import unlabelled
from pipelines.teacher.provenance import teacher_facts, told
from pipelines.tracking.tracker import TrackedRun, Tracker
from pipelines.training.training_cases import training_cases_file
from storage.base.artefacts import Artefact
from storage.base.atomic import read_json
from storage.base.finished import MADE_FROM
from storage.base.references import ArtefactRef

Log = Callable[[str], None]


@dataclass(frozen=True)
class ReportInputs:
    """Values of the input assets of a report."""

    release: ArtefactRef
    student: ArtefactRef
    scores: ArtefactRef
    baselines: ArtefactRef


def report(workspace: Workspace, variant: Variant, inputs: ReportInputs, log: Log) -> TaskResult[ArtefactRef]:
    """Report a variant with the baselines, log the report to MLflow, and register the proposed model."""
    own, baselines = open_scores(workspace, inputs.scores), open_scores(workspace, inputs.baselines)
    made_from = {
        "predictions": own.predictions.fingerprint,
        "baselines": baselines.predictions.fingerprint,
        **scored_from(),
    }

    facts = teacher_facts(workspace, str(read_json(baselines.predictions.path / MADE_FROM)["teacher"]))

    def build(folder: Path) -> dict[str, dict[str, float]]:
        rows = pd.concat([own.rows, baselines.rows], ignore_index=True)
        write_report(rows, folder)
        write_facts(folder, TEACHER, facts)
        return choosing_means(rows)

    made = workspace.artefacts.make("report", made_from, build)
    tracker = Tracker(workspace.settings)
    name = f"{variant.name}/evaluation"
    run = log_report(tracker, workspace, name, inputs.release, made, own.pictures, teacher=facts)
    notes: dict[str, object] = {
        "teacher": told(facts) or "not known",
        "test": read_comparison(made.path),
        "pictures": Picture(own.pictures),
        "report": made.path,
        "MLflow run": Link(run.url),
        **unlabelled.told(inputs.release),
    }
    if variant.name == PROPOSED.name:
        notes["registered version"] = _register(workspace, tracker, run, inputs.student, made)
    log(f"{variant.name}: {made.info}")
    return TaskResult(made.reference(), made.fingerprint, int(not made.reused), int(made.reused), notes)


def _register(workspace: Workspace, tracker: Tracker, run: TrackedRun, student: ArtefactRef, made: Artefact) -> str:
    """Offer a student to the registry, by its mean over validation patients; returns its version in words."""
    from medsam_core.scores.metric_table import CHOOSING, choosing

    folder = workspace.artefacts.get(student).path
    score = choosing().gain(made.info[f"validation_{CHOOSING}"]["student"])
    beside = filter(None, [training_cases_file(folder)])
    version, is_champion = tracker.register(run, folder / "model.safetensors", score, metric=CHOOSING, beside=beside)
    return f"{version}{' (champion)' if is_champion else ''}"


def compare_variants(
    workspace: Workspace, release: ArtefactRef, proposed: ArtefactRef, ablations: Mapping[str, ArtefactRef], log: Log
) -> TaskResult[ArtefactRef]:
    """Report the ablations with the proposed model, whose weights are of the same epoch.

    Args:
        workspace: The workspace.
        release: The release.
        proposed: Reference to the proposed fine-tuned model.
        ablations: Name -> scores of each ablation.
        log: Receives progress.
    """
    epoch = workspace.profile.ablation_epochs
    predicted = predict_student(workspace, PROPOSED, release, proposed, log, weights=f"epoch_{epoch:02d}")
    at_epoch = make_scores(workspace, release, workspace.artefacts.get(predicted.value), log)
    sources = {f"proposed epoch {epoch}": at_epoch}
    sources |= {name: open_scores(workspace, value) for name, value in ablations.items()}
    made_from = {
        "predictions": {name: scores.predictions.fingerprint for name, scores in sources.items()},
        **scored_from(),
    }

    def build(folder: Path) -> dict[str, dict[str, float]]:
        tables = [scores.rows.assign(predictor=name) for name, scores in sources.items()]
        rows = pd.concat(tables, ignore_index=True)
        write_report(rows, folder)
        return choosing_means(rows)

    made = workspace.artefacts.make("report", made_from, build)
    run = log_report(Tracker(workspace.settings), workspace, "ablations/evaluation", release, made, at_epoch.pictures)
    notes = {
        "test": read_comparison(made.path),
        "fine-tuning epochs of every variant": epoch,
        "report": made.path,
        "MLflow run": Link(run.url),
    }
    parts = int(not made.reused) + predicted.made + newly_made(at_epoch.artefact)
    return TaskResult(made.reference(), made.fingerprint, parts, 3 - parts, notes)
