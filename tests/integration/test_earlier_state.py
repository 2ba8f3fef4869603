"""State that earlier versions made is read and reused: nothing is silently made again."""

import tarfile
from pathlib import Path

import pytest

from medsam_core.models.checkpoints import load_model
from storage.base.modalities import MODALITIES
from storage.slices.verification import verify
from tests.integration.deployment import TINY, Deployment, deploy

PROFILE = """\
extends: {tiny}
inference: {{volume_prompts: propagated}}
"""
"""Predicts as the versions did that made the states."""

ARCHIVES = sorted((Path(__file__).parents[1] / "state").glob("*.tar.xz"))


@pytest.fixture(scope="module", params=ARCHIVES, ids=lambda path: path.name.partition(".")[0])
def earlier(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """Return a deployment whose state an earlier version made, after a run of the present one."""
    home = tmp_path_factory.mktemp("earlier")
    with tarfile.open(request.param) as archive:
        archive.extractall(home, filter="data")
    profile = home / "as_before.yaml"
    profile.write_text(PROFILE.format(tiny=TINY))
    deployment = deploy(home, str(profile))
    deployment.run_pipeline()
    return deployment


def test_there_is_such_state() -> None:
    assert ARCHIVES


def test_nothing_is_made_again(earlier: Deployment) -> None:
    ledger = earlier.ledger()
    assert ledger.index[ledger["made"] > 0].tolist() == []
    assert ledger["reused"].sum() > len(MODALITIES)


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_store_is_verified(earlier: Deployment, modality: str) -> None:
    found = verify(earlier.workspace.stores, modality)
    assert (found.damages, found.n_blobs > 5) == ((), True)


@pytest.mark.parametrize("asset", ["teacher_checkpoint", "proposed/student_distilled", "proposed/student_finetuned"])
def test_a_model_is_rebuilt_from_its_header(earlier: Deployment, asset: str) -> None:
    model = load_model(earlier.folder(asset) / "model.safetensors")
    assert model.image_size == earlier.workspace.profile.student.image_size


def test_verification_finds_no_damage(earlier: Deployment) -> None:
    """Ends with 1 where it does, which `Deployment.medsam` refuses."""
    assert "CT" in earlier.medsam("verify")
