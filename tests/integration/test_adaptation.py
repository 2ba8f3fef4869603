"""A teacher tuned on the training patients, through the whole pipeline: what is tuned, kept, believed and reported."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medsam_core.learning.stages import ADAPTATION
from medsam_core.models.checkpoints import load_model
from pipelines.base.values import BELIEVED, CacheRef, TeacherRef
from pipelines.evaluation.score_files import read_case_rows
from pipelines.teacher import cache_care
from tests.integration.deployment import DAGSTER, TINY, Deployment, deploy

PROFILE = f"""
extends: {TINY}
name: adapting
teacher_adaptation:
  epochs: 2
  epoch_slots: 16
  microbatch_size: 8
  microbatches_per_step: 1
  cached_epochs: 1
  prompts_per_slot: 2
  box_jitter_px: 0
  box_jitter_share: 0.05
  box_jitter_inward: true
  optimiser: {{learning_rate: RATE, weight_decay: 0.01, clip_norm: 1.0}}
finetuning: {{mask_distillation_rule: validation}}
"""


def _profile(folder: Path, rate: str) -> str:
    """Write the profile with a learning rate, and return its path."""
    path = folder / "adapting.yaml"
    path.write_text(PROFILE.replace("RATE", rate))
    return str(path)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """The whole pipeline with small steps of the teacher's decoder."""
    folder = tmp_path_factory.mktemp("adapting")
    deployment = deploy(folder / "home", _profile(folder, "1.0e-5"))
    deployment.run_pipeline()
    return deployment


def _tuned(deployment: Deployment) -> Path:
    """Return the folder of the tuned teacher, kept or not."""
    folders = [path.parent for path in (deployment.state / "artefacts" / "model").glob("*/made_from.json")]
    (found,) = (folder for folder in folders if f'"{ADAPTATION.name}"' in (folder / "made_from.json").read_text())
    return found


def test_only_the_decoder_is_tuned(adapted: Deployment) -> None:
    given = load_model(adapted.folder("teacher_checkpoint") / "model.safetensors").state_dict()
    tuned = load_model(_tuned(adapted) / "model.safetensors").state_dict()
    assert given.keys() == tuned.keys()
    changed = {name for name, value in given.items() if not torch.equal(value, tuned[name])}
    assert changed
    assert all(ADAPTATION.trains(name) for name in changed)


def test_the_choice_is_that_of_validation_patients(adapted: Deployment) -> None:
    (folder,) = (path.parent for path in (adapted.state / "artefacts" / "teacher_choice").glob("*/done.json"))
    rows = read_case_rows(folder)
    table = rows.pivot_table(index="modality", columns="predictor", values="dsc", observed=True)
    means = table.mean()
    teacher = adapted.value("adapted_teacher", TeacherRef)
    kept = "adapted_teacher" if means["adapted_teacher"] > means["teacher_as_given"] else "teacher_as_given"
    assert teacher.info["adapted"] is (kept == "adapted_teacher")
    assert teacher.info[BELIEVED] == list(table.index[table[kept] > table["ellipse"]])
    segs = {path.stem for path in (folder / "segs" / kept).rglob("*.npz")}
    release = adapted.release()
    validation = release.loc[release["split"] == "validation", "case_id"]
    assert segs == {name.rsplit("/", 1)[-1] for name in validation}


def test_whoever_learns_masks_or_starts_from_the_decoder_uses_the_chosen_teacher(adapted: Deployment) -> None:
    chosen = adapted.value("adapted_teacher", TeacherRef).fingerprint
    given = adapted.value("teacher_checkpoint", TeacherRef).fingerprint
    assert adapted.value("teacher_logits", CacheRef).teacher == chosen
    # The encoder is the same, so what the distillation learns does not wait for the adaptation.
    assert adapted.value("teacher_embeddings", CacheRef).teacher == given
    made_from = (adapted.folder("proposed/student_finetuned") / "made_from.json").read_text()
    assert chosen in made_from
    assert '"believed"' in made_from


def test_reports_have_an_adapted_teacher_beside_the_one_as_given(adapted: Deployment) -> None:
    predictors = set(adapted.rows("baseline_scores")["predictor"])
    assert "teacher" in predictors
    adapted_is_kept = bool(adapted.value("adapted_teacher", TeacherRef).info["adapted"])
    assert ("teacher_as_given" in predictors) is adapted_is_kept


def test_its_cache_is_in_use_and_a_second_run_makes_nothing(adapted: Deployment) -> None:
    listed = cache_care.list_caches(adapted.workspace)
    assert "adaptation" in set(listed["pinned_by"])
    assert (adapted.run_pipeline()["made"] == 0).all()


def test_an_adaptation_that_harms_is_not_kept(adapted: Deployment, tmp_path: Path) -> None:
    copy = adapted.moved_to(tmp_path / "home")
    deployment = replace(copy, profile=_profile(tmp_path, "0.3"))
    deployment.run(DAGSTER, "asset", "materialize", "--select", 'key:"adapted_teacher"')
    teacher = deployment.value("adapted_teacher", TeacherRef)
    assert teacher.info["adapted"] is False
    assert teacher.fingerprint == deployment.value("teacher_checkpoint", TeacherRef).fingerprint
