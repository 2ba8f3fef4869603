"""Which teacher is asked and compared with. What belongs here: the choice by validation patients, and what is believed.

Not here: tuning the teacher (`pipelines.training.students.adapt`).

A tuned teacher is kept only if its mean over validation patients is better than that of the teacher as given. The masks
of the one kept are believed in the modalities where it is better than the ellipse inscribed in the box, again on
validation patients; a modality without any is not believed.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

from pipelines.base.results import Link, TaskResult
from pipelines.base.values import BELIEVED, TeacherRef
from pipelines.base.workspace import Workspace
from pipelines.evaluation.predictions import TEACHER_AS_GIVEN, load_segmenter
from pipelines.evaluation.predictors import box_predictors, device_of, predictors_of
from pipelines.evaluation.reports import choosing_means
from pipelines.evaluation.versions import PREDICTION_VERSION, rules_of, scored_from
from pipelines.ingest.releases import release_reader, split_fingerprint
from pipelines.runs.launch import Launch
from pipelines.teacher import adaptation
from pipelines.tracking.tracker import TrackedRun, Tracker
from pipelines.training import students
from pipelines.training.students import StageInputs, parent_run
from storage.base.artefacts import Artefact
from storage.base.references import ArtefactRef

Log = Callable[[str], None]

ADAPTED = "adapted_teacher"
"""Predictor of the tuned teacher, whether it is kept or not."""

ELLIPSE = "ellipse"

_VALIDATION = "validation"


def adapted_teacher(workspace: Workspace, inputs: StageInputs, launch: Launch, log: Log) -> TaskResult[TeacherRef]:
    """Tune the teacher where the profile says so, and return the better one on validation patients.

    Where the profile neither tunes the teacher nor asks whether it is believed, it is returned as given.
    """
    profile, given = workspace.profile, inputs.teacher
    config = profile.teacher_adaptation
    if config is None and profile.finetuning.mask_distillation_rule == "always":
        return TaskResult(given, given.fingerprint, 0, 0, {"why": adaptation.left_out(workspace)})
    candidates: dict[str, ArtefactRef] = {TEACHER_AS_GIVEN: given}
    notes: dict[str, object] = {}
    made = 0
    if config is not None:
        tuned = students.adapt(workspace, config, inputs, launch, log)
        candidates[ADAPTED], notes, made = tuned.value, dict(tuned.notes), tuned.made
    choice = _choice(workspace, inputs.release, candidates, log)
    kept = str(choice.info["kept"])
    log(f"{kept} is kept; validation means {choice.info['means']}; believed in {', '.join(choice.info[BELIEVED])}")
    model = candidates[kept]
    facts = {**model.info, BELIEVED: choice.info[BELIEVED], "adapted": kept == ADAPTED}
    value = TeacherRef(model.kind, model.fingerprint, facts, model.reused, teacher=given.teacher)
    notes |= {
        "kept": kept,
        "validation means": str(choice.info["means"]),
        "believed": ", ".join(choice.info[BELIEVED]),
        "validation by modality": pd.DataFrame(choice.info["by_modality"]).rename_axis("modality").reset_index(),
        "choice in MLflow": Link(_track(workspace, inputs.release, choice).url),
    }
    made += int(not choice.reused)
    return TaskResult(value, model.fingerprint, made, len(candidates) - made, notes)


def _choice(workspace: Workspace, release: ArtefactRef, candidates: Mapping[str, ArtefactRef], log: Log) -> Artefact:
    made_from = {
        "candidates": {name: model.fingerprint for name, model in candidates.items()},
        _VALIDATION: split_fingerprint(release, _VALIDATION),
        "prediction_version": PREDICTION_VERSION,
        **rules_of(workspace.profile.inference),
        **scored_from(),
    }
    return workspace.artefacts.make(
        "teacher_choice", made_from, lambda folder: _choose(folder, workspace, release, candidates, log)
    )


def _choose(
    folder: Path, workspace: Workspace, release: ArtefactRef, candidates: Mapping[str, ArtefactRef], log: Log
) -> dict[str, object]:
    """Predict and score the validation patients; return the candidate kept, the means, and where it is believed."""
    from medsam_core.scores.metric_table import CHOOSING, choosing
    from pipelines.evaluation.cases import cases_of_release
    from pipelines.evaluation.scoring import predict_and_score

    models = {name: load_segmenter(workspace, model) for name, model in candidates.items()}
    predictors = predictors_of(models, workspace.profile.inference, device=device_of(workspace))
    predictors[ELLIPSE] = box_predictors()[ELLIPSE]
    cases = cases_of_release(release_reader(workspace, release, _VALIDATION), _VALIDATION)
    rows = predict_and_score(cases, predictors, folder, log).cases
    table = rows.pivot_table(index="modality", columns="predictor", values=CHOOSING, aggfunc="mean", observed=True)
    gain = choosing().gain
    means = choosing_means(rows)[f"{_VALIDATION}_{CHOOSING}"]
    # The first of equals, which is the teacher as given.
    kept = max(candidates, key=lambda name: gain(means[name]))
    better = table[kept].map(gain) > table[ELLIPSE].map(gain)
    by_modality = {str(name): column.dropna().to_dict() for name, column in table.items()}
    believed = [str(name) for name in table.index[better]]
    return {"kept": kept, "means": means, "by_modality": by_modality, BELIEVED: believed}


def _track(workspace: Workspace, release: ArtefactRef, choice: Artefact) -> TrackedRun:
    """Log the validation scores of the candidates to MLflow as a run of its own, once."""
    tracker = Tracker(workspace.settings)
    run = tracker.open_run(
        "teacher/choice", choice.fingerprint, parent=lambda: parent_run(tracker, workspace, release), tags={}
    )
    if not run.finished:
        means = {f"validation.mean.{name}": value for name, value in choice.info["means"].items()}
        by_modality = {
            f"validation.{name}.{modality}": value
            for name, column in choice.info["by_modality"].items()
            for modality, value in column.items()
        }
        tracker.log_metrics(run, means | by_modality)
        tracker.close_run(run)
    return run
