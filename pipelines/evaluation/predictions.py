"""Predictions of validation and test cases: of a variant's student, and of the baselines.

What belongs here: the predictors, and the inputs of their predictions. Not here: scoring them (`scores`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.base.results import Picture, TaskResult
from pipelines.base.values import TeacherRef
from pipelines.base.variants import Variant
from pipelines.base.workspace import Workspace
from pipelines.evaluation.predictors import box_predictors, device_of, predictor, predictors_of
from pipelines.evaluation.versions import SPLITS, predicted_from
from pipelines.ingest.releases import release_reader
from storage.base.artefacts import Artefact
from storage.base.references import ArtefactRef

if TYPE_CHECKING:
    from medsam_core.models.segmenter import Segmenter
    from pipelines.evaluation.cases import EvaluationCase, Predict

Log = Callable[[str], None]

CONSTANT_GREY = 127
"""Value of every pixel of the constant image for the student without an image."""

TEACHER_AS_GIVEN = "teacher_as_given"
"""Predictor of the teacher before its adaptation; only where the teacher is an adapted one."""

PICTURES = "pictures.png"
"""Picture of one test case of each modality with its prediction."""


@dataclass(frozen=True)
class BaselineInputs:
    """Values of the input assets of the baselines; `given_teacher` is the teacher before its adaptation."""

    release: ArtefactRef
    statistics: ArtefactRef
    teacher: TeacherRef
    student: ArtefactRef
    given_teacher: TeacherRef

    @property
    def teachers(self) -> dict[str, TeacherRef]:
        """The teacher, and beside an adapted one the teacher that was given, by names of predictors."""
        adapted = self.given_teacher.fingerprint != self.teacher.fingerprint
        return {"teacher": self.teacher, **({TEACHER_AS_GIVEN: self.given_teacher} if adapted else {})}


def evaluated_cases(workspace: Workspace, release: ArtefactRef) -> Iterator["EvaluationCase"]:
    """Yield the cases that are predicted and scored, one at a time."""
    from pipelines.evaluation.cases import cases_of_release

    for split in SPLITS:
        yield from cases_of_release(release_reader(workspace, release, split), split)


def predict_into(
    folder: Path, workspace: Workspace, release: ArtefactRef, predictors: dict[str, "Predict"], log: Log
) -> dict[str, object]:
    """Predict the release's cases and draw the masks of the first predictor; return the facts of the artefact."""
    from pipelines.evaluation.scoring import predict_cases

    count = predict_cases(evaluated_cases(workspace, release), predictors, folder, log)
    _draw(workspace, release, folder, next(iter(predictors)))
    return {"cases": count}


def predict_student(
    workspace: Workspace,
    variant: Variant,
    release: ArtefactRef,
    student: ArtefactRef,
    log: Log,
    *,
    weights: str = "model",
) -> TaskResult[ArtefactRef]:
    """Predict validation and test cases with a variant's student.

    Args:
        workspace: The workspace.
        variant: The variant.
        release: The release.
        student: Reference to the variant's fine-tuned model.
        log: Receives progress.
        weights: Name of the weights: `model`, or `epoch_XX` for those kept after an epoch.
    """
    made_from = {
        "model": student.fingerprint,
        "weights": weights,
        **predicted_from(release, workspace.profile.inference),
    }

    def build(folder: Path) -> dict[str, object]:
        model = load_segmenter(workspace, student, weights)
        predictors = {"student": predictor(model, workspace.profile.inference, device=device_of(workspace))}
        return predict_into(folder, workspace, release, predictors, log)

    made = workspace.artefacts.make("predictions", made_from, build)
    log(f"{variant.name} {weights}: {made.info['cases']} cases predicted")
    return _result(made, "student")


def predict_baselines(workspace: Workspace, inputs: BaselineInputs, log: Log) -> TaskResult[ArtefactRef]:
    """Predict validation and test cases with the baselines."""
    profile = workspace.profile
    made_from = {
        **{name: teacher.fingerprint for name, teacher in inputs.teachers.items()},
        "student": inputs.student.fingerprint,
        "untrained": {
            "student": profile.student.model_dump(mode="json"),
            "init_seed": profile.seeds.init,
            "statistics": inputs.statistics.fingerprint,
        },
        "constant_grey": CONSTANT_GREY,
        **predicted_from(inputs.release, profile.inference),
    }
    made = workspace.artefacts.make(
        "predictions",
        made_from,
        lambda folder: predict_into(folder, workspace, inputs.release, _baselines(workspace, inputs), log),
    )
    return _result(made, "teacher")


def _baselines(workspace: Workspace, inputs: BaselineInputs) -> dict[str, "Predict"]:
    from medsam_core.models.segmenter import build_student

    device, profile, rules = device_of(workspace), workspace.profile, workspace.profile.inference
    pixels = inputs.statistics.info
    untrained = build_student(profile.student, pixels["mean"], pixels["std"], profile.seeds.init)
    student = load_segmenter(workspace, inputs.student)
    teachers = {name: load_segmenter(workspace, model) for name, model in inputs.teachers.items()}
    return {
        **predictors_of(teachers, rules, device=device),
        **box_predictors(),
        "untrained_student": predictor(untrained, rules, device=device),
        "student_no_image": predictor(student, rules, constant_image=CONSTANT_GREY, device=device),
    }


def load_segmenter(workspace: Workspace, reference: ArtefactRef, name: str = "model") -> "Segmenter":
    """Return the model of an artefact; `name` is that of the weights."""
    from medsam_core.models.checkpoints import load_model

    return load_model(workspace.artefacts.get(reference).path / f"{name}.safetensors")


def _result(made: Artefact, shown: str) -> TaskResult[ArtefactRef]:
    notes = {
        "cases": made.info["cases"],
        f"{shown} (magenta) over ground truth (yellow)": Picture(made.path / PICTURES),
        "masks": made.path / "segs",
    }
    return TaskResult(made.reference(), made.fingerprint, int(not made.reused), int(made.reused), notes)


def _draw(workspace: Workspace, release: ArtefactRef, folder: Path, name: str) -> None:
    """Draw one test case of each modality: the middle slice of a volume."""
    import numpy as np

    from pipelines.base import pictures
    from pipelines.evaluation.cases import cases_of_release, load_segs, segs_file

    tiles = {}
    for case in cases_of_release(release_reader(workspace, release, "test"), "test"):
        if case.identity.modality in tiles:
            continue
        segs = load_segs(segs_file(folder, name, case.identity.case_id))
        z = int(np.argmax(case.gts.reshape(len(case.gts), -1).astype(bool).sum(1))) if case.is_3d else None
        layers = (case.imgs, case.gts, segs) if z is None else (case.imgs[z], case.gts[z], segs[z])
        tiles[case.identity.modality] = (*layers, case.identity.case_id)
    if tiles:
        pictures.prediction_sheet(list(tiles.values()), folder / PICTURES)
