"""A deployment whose teacher's weights have not been brought: told at once, and only where they are needed.

What belongs here: real commands. Not here: which file is taken (`tests/unit/test_teacher_file.py`).
"""

from pathlib import Path

import dagster as dg
import pytest

from tests.integration.deployment import DAGSTER, FULL_PIPELINE, Deployment, deploy

PROFILE = """\
extends: sample
name: lite
source: {synthetic_cases: 3, synthetic_volumes: 1}
student: {backbone: lite_medsam, image_size: 64}
teacher: {kind: lite_medsam, image_size: 64}
"""


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    profile = tmp_path / "lite.yaml"
    profile.write_text(PROFILE)
    return deploy(tmp_path / "home", str(profile))


def test_full_pipeline_ends_before_its_first_step_with_what_to_do(deployment: Deployment) -> None:
    assert deployment.start(*FULL_PIPELINE).wait() != 0
    output = (deployment.home / "output.txt").read_text()
    place = deployment.home / "weights" / "lite_medsam.pth"
    assert f"teacher lite_medsam: expected its published weights in {place}, found none" in output
    assert "bring them with `medsam teacher lite_medsam`" in output
    assert "Traceback" not in output
    (run,) = deployment.instance.get_runs()
    assert run.status is dg.DagsterRunStatus.FAILURE
    assert deployment.ledgers() == []
    assert not (deployment.state / "stores").exists(), "nothing was begun"


def test_ingest_does_without_them(deployment: Deployment) -> None:
    deployment.run(DAGSTER, "job", "execute", "-j", "ingest")
    assert "dataset_release" in deployment.ledger().index
