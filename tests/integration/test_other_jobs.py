"""The jobs beside `full_pipeline`, by their literal commands: the ablations, and the registered model scored again."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from mlflow.tracking import MlflowClient

from pipelines.base.variants import ABLATIONS
from pipelines.teacher import cache_care
from tests.integration.conftest import Finished
from tests.integration.deployment import DAGSTER, Deployment

SHARED = {"dataset_release", "teacher_checkpoint", "finetuning_plan", "teacher_logits", "proposed/student_finetuned"}


@pytest.fixture(scope="module")
def ablated(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """The finished run's state after the job `ablations`."""
    deployment = finished.deployment.moved_to(tmp_path_factory.mktemp("ablated") / "home")
    deployment.run(DAGSTER, "job", "execute", "-j", "ablations")
    return deployment


def test_ablations_stand_beside_the_proposed_model_of_the_same_epoch(ablated: Deployment) -> None:
    rows = pd.read_csv(ablated.folder("ablation_report") / "cases.csv")
    epoch = ablated.workspace.profile.ablation_epochs
    assert set(rows["predictor"]) == {f"proposed epoch {epoch}", *(variant.name for variant in ABLATIONS)}
    assert rows.groupby("predictor")["case_id"].nunique().nunique() == 1
    comparison = pd.read_csv(ablated.folder("ablation_report") / "comparison.csv").set_index("modality")
    assert comparison.loc["mean of modalities"].notna().all()


def test_ablations_reuse_what_they_share_and_their_caches_are_their_own(ablated: Deployment) -> None:
    ledger = ablated.ledger()
    assert (ledger.loc[sorted(SHARED), "made"] == 0).all()
    owners = [variant.name for variant in ABLATIONS if variant.owns_plan]
    assert owners
    assert (ledger.loc[[f"{name}/teacher_embeddings" for name in owners], "made"] > 0).all()
    distilled = [variant.name for variant in ABLATIONS if variant.owns_distillation]
    assert (ledger.loc[[f"{name}/student_distilled" for name in distilled], "made"] > 0).all()
    listed = cache_care.list_caches(ablated.workspace)
    embeddings = listed[listed["answers"] == "embeddings"]
    assert sorted(embeddings["pinned_by"]) == sorted(["proposed", *owners])


def test_mlflow_compares_the_ablations(ablated: Deployment) -> None:
    client = MlflowClient(ablated.workspace.settings.tracking_uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(experiments, "attributes.run_name = 'ablations/evaluation'")
    assert run.info.status == "FINISHED"
    for variant in ABLATIONS:
        assert 0 <= run.data.metrics[f"test.dsc.{variant.name}.mean"] <= 1


def test_the_registered_model_is_scored_again_to_the_same_numbers(finished: Finished, tmp_path: Path) -> None:
    deployment = finished.deployment.moved_to(tmp_path / "home")
    # Its records name the first home's files, which are still there.
    shutil.copytree(finished.deployment.home / "mlflow", deployment.home / "mlflow", dirs_exist_ok=True)
    deployment.run(DAGSTER, "job", "execute", "-j", "reevaluate")
    rows = pd.read_csv(deployment.folder("registered_model_report") / "cases.csv")
    asset = deployment.rows("proposed/scores")
    columns = ["case_id", "split", "dsc", "nsd"]
    found, expected = (
        table.sort_values("case_id", ignore_index=True)[columns]
        for table in (rows[rows["predictor"] == "student"], asset)
    )
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
