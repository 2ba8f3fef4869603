"""What a training stage is made from: every value that it reads makes another model."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

import pytest

from medsam_core.base.config import AugmentationConfig, OptimiserConfig, StageConfig
from medsam_core.learning.stages import FINETUNING
from medsam_core.planning.plan import plan_inputs
from pipelines.base.settings import read_settings
from pipelines.base.values import CacheRef, TeacherRef, TrainerJob
from pipelines.base.variants import PROPOSED, VARIANTS
from pipelines.base.workspace import Workspace
from pipelines.training import students
from pipelines.training.students import StageInputs
from storage.base.fingerprints import fingerprint
from storage.base.references import ArtefactRef


def artefact(name: str) -> ArtefactRef:
    return ArtefactRef(name, f"fingerprint of {name}", {}, reused=True)


PLAN, DISTILLED = artefact("plan"), artefact("distilled")
TEACHER = TeacherRef("teacher", "fingerprint of teacher", {}, reused=True, teacher="stand_in")
CACHE = CacheRef("cached", "embeddings", "digest", "answers", teacher=TEACHER.fingerprint, plan=PLAN.fingerprint)
INPUTS = StageInputs(artefact("release"), artefact("statistics"), PLAN, TEACHER, CACHE)

OTHERS = {
    "statistics": dataclasses.replace(INPUTS, statistics=artefact("other")),
    "plan": dataclasses.replace(
        INPUTS, plan=artefact("other"), cache=dataclasses.replace(CACHE, plan="fingerprint of other")
    ),
    "teacher": dataclasses.replace(
        INPUTS,
        teacher=dataclasses.replace(TEACHER, fingerprint="other"),
        cache=dataclasses.replace(CACHE, teacher="other"),
    ),
    "answers": dataclasses.replace(INPUTS, cache=dataclasses.replace(CACHE, fingerprint="other")),
    "no answers": dataclasses.replace(INPUTS, cache=None),
}
"""Inputs of which one is another."""


class StartedError(Exception):
    """Raised where training would begin."""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(read_settings({"MEDSAM_HOME": str(tmp_path), "MEDSAM_PROFILE": "sample"}))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The fingerprints of the stages that were to be trained or found, in order."""
    found: list[str] = []

    def stage(
        _workspace: Workspace, _name: str, made_from: Mapping[str, object], job: TrainerJob, *_rest: object
    ) -> NoReturn:
        assert job.fingerprint == fingerprint(made_from)
        assert job.precision == made_from.get("precision", "float32")
        found.append(job.fingerprint)
        raise StartedError

    monkeypatch.setattr(students, "run_stage", stage)
    return found


def never(*_arguments: object) -> NoReturn:
    """Stand for what starts a trainer."""
    raise AssertionError("nothing is to be trained")


def silent(_text: str) -> None:
    """Stand for a log."""


@pytest.mark.parametrize("name", OTHERS)
def test_another_input_is_another_distillation(name: str, workspace: Workspace, asked: list[str]) -> None:
    for inputs in (INPUTS, INPUTS, OTHERS[name]):
        with pytest.raises(StartedError):
            students.distil(workspace, PROPOSED, inputs, never, silent)
    assert asked[0] == asked[1] != asked[2]


def test_the_pyramids_distillation_alone_says_what_its_norm_started_from(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, tuple[Mapping[str, object], TrainerJob]] = {}

    def stage(
        _workspace: Workspace, name: str, made_from: Mapping[str, object], job: TrainerJob, *_rest: object
    ) -> NoReturn:
        found[name] = made_from, job
        raise StartedError

    monkeypatch.setattr(students, "run_stage", stage)
    for variant in VARIANTS:
        with pytest.raises(StartedError):
            students.distil(workspace, variant, INPUTS, never, silent)
    own, job = found.pop("pyramid/distillation")
    expected = {"backbone": "repvit_m0_9", "image_size": 128, "neck": "pyramid", "stride": 16}
    assert (own["last_norm"], own["student"]) == ("teacher", expected)
    assert job.student == VARIANTS[-1].student(workspace.profile)
    for made_from, job in found.values():
        assert "last_norm" not in made_from
        assert made_from["student"] == {"backbone": "repvit_m0_9", "image_size": 128}
        assert job.student == workspace.profile.student


@pytest.mark.parametrize("name", ["plan", "teacher", "answers", "no answers", "distilled"])
def test_another_input_is_another_finetuning(name: str, workspace: Workspace, asked: list[str]) -> None:
    for inputs, distilled in (
        (INPUTS, DISTILLED),
        (INPUTS, DISTILLED),
        (OTHERS.get(name, INPUTS), artefact("other") if name == "distilled" else DISTILLED),
    ):
        with pytest.raises(StartedError):
            students.finetune(workspace, PROPOSED, inputs, distilled, never, silent)
    assert asked[0] == asked[1] != asked[2]


@pytest.mark.parametrize(
    "begin",
    [
        lambda workspace: students.distil(workspace, PROPOSED, INPUTS, never, silent),
        lambda workspace: students.finetune(workspace, PROPOSED, INPUTS, DISTILLED, never, silent),
    ],
    ids=["distillation", "finetuning"],
)
def test_a_stated_number_format_is_another_training_and_float32_what_there_was(
    begin: Callable[[Workspace], object], tmp_path: Path, asked: list[str]
) -> None:
    """`auto` counts as what is stated, not as what a machine makes of it."""
    for number, stated in enumerate((None, "float32", "bfloat16", "auto")):
        variables = {"MEDSAM_HOME": str(tmp_path), "MEDSAM_PROFILE": profile_with(stated, tmp_path / f"{number}.yaml")}
        workspace = Workspace(read_settings(variables))
        with pytest.raises(StartedError):
            begin(workspace)
    assert asked[0] == asked[1]
    assert len(set(asked)) == 3


def test_a_teacher_is_adapted_in_float32_whatever_students_are_trained_in(tmp_path: Path, asked: list[str]) -> None:
    for stated in ("float32", "bfloat16"):
        name = profile_with(stated, tmp_path / f"{stated}.yaml")
        workspace = Workspace(read_settings({"MEDSAM_HOME": str(tmp_path), "MEDSAM_PROFILE": name}))
        with pytest.raises(StartedError):
            students.adapt(workspace, workspace.profile.finetuning, INPUTS, never, silent)
    assert asked[0] == asked[1]


def profile_with(precision: str | None, file: Path) -> str:
    """Write a profile that trains in a number format; return its name."""
    file.write_text("extends: sample" + (f"\ntraining: {{precision: {precision}}}" if precision else ""))
    return str(file)


OTHER_VALUES: dict[str, object] = {
    "epochs": 3,
    "microbatch_size": 3,
    "microbatches_per_step": 2,
    "epoch_slots": 6,
    "cached_epochs": 2,
    "prompts_per_slot": 2,
    "box_jitter_px": 1,
    "box_jitter_share": 0.1,
    "box_jitter_inward": True,
    "augmentation": AugmentationConfig(crop=0.5),
    "optimiser": OptimiserConfig(learning_rate=1e-5),
    "mask_distillation": False,
    "dice": "linear",
    "bce_weight": 0.5,
}


def test_no_setting_of_a_stage_is_without_consequence() -> None:
    """What a stage learns from changes its fingerprint: by its plan, or by what is learnt from the plan."""
    start = StageConfig(box_jitter_share=0.2)

    def made_from(config: StageConfig) -> object:
        return plan_inputs(config, FINETUNING, 64, 0), students.learning(config)

    for name, value in OTHER_VALUES.items():
        assert made_from(start.model_copy(update={name: value})) != made_from(start), name
    elsewhere = {"mask_distillation_rule"}
    assert set(OTHER_VALUES) | elsewhere == set(StageConfig.model_fields)


def test_settings_that_earlier_versions_lacked_leave_what_they_made_as_it_was() -> None:
    assert set(students.learning(StageConfig())) == {"epochs", "mask_distillation", "optimiser"}
