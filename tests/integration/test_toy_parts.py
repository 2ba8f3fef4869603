"""A new encoder and a new source format, each one file, through the whole pipeline: no line of the project changes.

What belongs here: a run with both, as student and as teacher, that the project's own parts could not have made.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medsam_core.base.geometry import PADDED
from medsam_core.learning.stages import DISTILLATION, FINETUNING, Stage
from medsam_core.models.checkpoints import load_model, save_model
from medsam_core.models.config import TeacherConfig
from medsam_core.models.encoders.registry import ENTRY_POINTS as ENCODERS
from medsam_core.models.segmenter import build_teacher
from pipelines.base.values import TeacherRef
from pipelines.base.variants import PROPOSED
from pipelines.teacher import caches
from pipelines.teacher.cache_user import variant_user
from storage.answers.teacher_cache import TeacherCache
from storage.sources.kinds import ENTRY_POINTS as SOURCES
from tests.integration import toy_encoder, toy_source
from tests.integration.deployment import ROOT, TINY, Deployment, deploy

PROFILE = f"""
extends: {TINY}
name: toys
source: {{kind: toy_folder}}
student: {{backbone: toy}}
teacher: {{kind: toy, settings: {{width: 24}}}}
"""

SHAPES = {"embeddings": toy_encoder.EMBEDDING, "logits": (2, 32, 32)}
"""Of a slot's answer: prompts of a slot, and logits of four times the embedding's side."""


def _install(folder: Path) -> None:
    """Install both as a package does: by its metadata alone."""
    metadata = folder / "medsam_toys-1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: medsam-toys\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(
        f"[{ENCODERS}]\ntoy = {toy_encoder.__name__}:SPEC\n\n"
        f"[{SOURCES}]\ntoy_folder = {toy_source.__name__}:ToyFolder\n"
    )


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Run the whole pipeline with the toys installed."""
    folder = tmp_path_factory.mktemp("toys")
    _install(folder / "packages")
    assert toy_source.write_toy_sample(folder / "data")
    (folder / "toys.yaml").write_text(PROFILE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder / "packages"))
        teacher = build_teacher(TeacherConfig(kind="toy", image_size=64, settings={"width": 24}), seed=3)
        save_model(folder / "teacher.safetensors", teacher, {})
        deployment = deploy(
            folder / "home",
            str(folder / "toys.yaml"),
            MEDSAM_DATA=str(folder / "data"),
            MEDSAM_TEACHER=str(folder / "teacher.safetensors"),
            PYTHONPATH=os.pathsep.join([str(ROOT), str(folder / "packages")]),
        )
        deployment.run_pipeline()
        yield deployment


def test_the_source_gave_every_case(toys: Deployment) -> None:
    manifest = pd.read_parquet(toys.folder("raw_manifest") / "manifest.parquet")
    assert len(manifest) == len(list(toys.workspace.settings.data.rglob("*.toy")))
    assert set(manifest["status"]) == {"accepted"}


@pytest.mark.parametrize("name", ["teacher_checkpoint", "proposed/student_distilled", "proposed/student_finetuned"])
def test_models_have_the_toys_geometry_and_settings(toys: Deployment, name: str) -> None:
    model = load_model(toys.folder(name) / "model.safetensors")
    geometry = model.geometry
    assert (geometry.image_side, geometry.embedding_side, geometry.logit_side) == (64, 8, 32)
    assert geometry.frame == PADDED
    assert model.image_encoder.get_submodule("0").get_parameter("bias").shape == (24 if "teacher" in name else 16,)


@pytest.mark.parametrize("stage", [DISTILLATION, FINETUNING], ids=lambda stage: stage.name)
def test_the_teachers_answers_have_its_grid_and_are_the_same_again(toys: Deployment, stage: Stage) -> None:
    plan, release = (toys.value(name) for name in (f"{stage.name}_plan", "dataset_release"))
    inputs = (toys.value("teacher_checkpoint", TeacherRef), plan, release)
    user = variant_user(PROPOSED, stage)
    work = caches.CacheWork(toys.workspace, user, inputs)
    cache = TeacherCache(work.root, work.spec.made_from)
    assert cache.read(work.question.array, 0, 1)[0].shape == SHAPES[stage.question.kind]
    again = caches.check_answers(toys.workspace, user, inputs, count=4, seed=0)
    assert len(again) == 4
    assert (again["error"] <= again["allowed"]).all()


def test_the_student_learnt_and_was_scored(toys: Deployment) -> None:
    distilled = pd.read_json(toys.folder("proposed/student_distilled") / "metrics.jsonl", lines=True)
    assert distilled["embedding_mse"].iloc[-1] < distilled["embedding_mse"].iloc[0]
    rows = toys.rows("proposed/scores")
    assert np.isfinite(rows["dsc"]).any()
    assert (toys.folder("proposed/evaluation_report") / "comparison.csv").is_file()
