"""A student with the pyramid neck through the whole pipeline, against a teacher of the same stride.

What belongs here: a run whose grid is four times as fine as the sample's. The teacher is LiteMedSAM's architecture with
weights of its own, as the published file is none of the project's.
"""

import json

import numpy as np
import pandas as pd
import pytest

from medsam_core.models.checkpoints import load_model, save_model
from medsam_core.models.config import TeacherConfig
from medsam_core.models.segmenter import Segmenter, build_teacher
from tests.integration.deployment import TINY, Deployment, deploy

PROFILE = f"""
extends: {TINY}
name: fine
student: {{neck: pyramid, resampling: area}}
teacher: {{kind: lite_medsam}}
"""


@pytest.fixture(scope="module")
def fine(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """Run the whole pipeline."""
    folder = tmp_path_factory.mktemp("fine")
    (folder / "fine.yaml").write_text(PROFILE)
    teacher = build_teacher(TeacherConfig(kind="lite_medsam", image_size=64), seed=3)
    norm = teacher.last_norm
    assert norm is not None
    norm.get_parameter("weight").data.fill_(0.25)
    save_model(folder / "teacher.safetensors", teacher, {})
    weights = str(folder / "teacher.safetensors")
    deployment = deploy(folder / "home", str(folder / "fine.yaml"), MEDSAM_TEACHER=weights)
    deployment.run_pipeline()
    return deployment


def model_of(deployment: Deployment, name: str) -> Segmenter:
    return load_model(deployment.folder(name) / "model.safetensors")


@pytest.mark.parametrize("name", ["teacher_checkpoint", "proposed/student_distilled", "proposed/student_finetuned"])
def test_models_have_the_fine_grid(fine: Deployment, name: str) -> None:
    geometry = model_of(fine, name).geometry
    assert (geometry.image_side, geometry.embedding_side, geometry.logit_side) == (64, 16, 64)


def test_distillation_went_on_from_the_teachers_norm(fine: Deployment) -> None:
    """Two epochs of two steps move a weight by a few thousandths, so it is still near 0.25 and far from a fresh 1."""
    norm = model_of(fine, "proposed/student_distilled").last_norm
    assert norm is not None
    weight = norm.get_parameter("weight").detach()
    assert float((weight - 0.25).abs().max()) < 0.05
    assert float((weight - 0.25).abs().max()) > 0
    made_from = json.loads((fine.folder("proposed/student_distilled") / "made_from.json").read_text())
    assert made_from["last_norm"] == "teacher"


def test_the_student_learnt_and_was_scored(fine: Deployment) -> None:
    distilled = pd.read_json(fine.folder("proposed/student_distilled") / "metrics.jsonl", lines=True)
    assert distilled["embedding_mse"].iloc[-1] < distilled["embedding_mse"].iloc[0]
    rows = fine.rows("proposed/scores")
    assert np.isfinite(rows["dsc"]).any()
    assert (fine.folder("proposed/evaluation_report") / "comparison.csv").is_file()


def test_a_second_run_makes_nothing(fine: Deployment) -> None:
    fine.run_pipeline()
    assert (fine.ledger()["made"] == 0).all()
