"""The whole pipeline by its literal command: what it leaves, that a second run reuses it, that a change costs its own.

What belongs here: finished runs, run again, changed at the source, and scored by `medsam evaluate`.
"""

import json
import sqlite3
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from storage.base.modalities import MODALITIES
from tests.integration.conftest import Finished
from tests.integration.deployment import LEFT_OUT, Deployment

PREDICTORS = ("student", "teacher", "ellipse", "filled_box", "untrained_student", "student_no_image")
STORES = {f"slice_store/{modality}" for modality in MODALITIES}
EVALUATED = {
    "baseline_predictions",
    "baseline_scores",
    "proposed/predictions",
    "proposed/scores",
    "proposed/evaluation_report",
}
TRAINED = {
    "pixel_statistics",
    "distillation_plan",
    "finetuning_plan",
    "teacher_embeddings",
    "teacher_logits",
    "proposed/student_distilled",
    "proposed/student_finetuned",
}
RELEASED = {"raw_manifest", "slice_index", "dataset_release"}

SECOND_RUN = """
import json, sys
commands = []
sys.addaudithook(lambda event, arguments: commands.append(str(arguments[1])) if event == "subprocess.Popen" else None)
import dagster as dg
from pipelines.definitions import defs
result = defs.resolve_job_def("full_pipeline").execute_in_process(instance=dg.DagsterInstance.get())
print(json.dumps({"success": result.success, "commands": commands, "torch": "torch" in sys.modules}))
"""


def made(ledger: pd.DataFrame) -> set[str]:
    """Return the assets of which a run made anything."""
    return set(ledger.index[ledger["made"] > 0])


def test_a_run_makes_everything_and_says_so(finished: Finished) -> None:
    everything = STORES | RELEASED | TRAINED | EVALUATED | {"teacher_checkpoint"}
    assert set(finished.ledger.index) == everything | LEFT_OUT
    assert made(finished.ledger) == everything
    assert not finished.ledger["reused"].any()


def test_the_report_holds_every_modality_and_predictor(finished: Finished) -> None:
    folder = finished.deployment.folder("proposed/evaluation_report")
    comparison = pd.read_csv(folder / "comparison.csv").set_index("modality")
    assert set(comparison.index) == {*MODALITIES, "mean of modalities"}
    wanted = {f"{metric} {predictor}" for metric in ("DSC", "NSD") for predictor in PREDICTORS}
    assert wanted == set(comparison.columns) - {"cases"}
    assert comparison.drop(columns="cases").apply(lambda column: column.between(0, 1)).all(axis=None)
    assert comparison["DSC filled_box"].gt(0.3).all()

    rows = pd.read_csv(folder / "cases.csv")
    release = finished.deployment.release()
    for split in ("validation", "test"):
        cases = set(release.loc[release["split"] == split, "case_id"])
        for predictor in PREDICTORS:
            found = rows[(rows["split"] == split) & (rows["predictor"] == predictor)]
            assert sorted(found["case_id"]) == sorted(cases)
    assert set(rows["split"]) == {"validation", "test"}


def test_summary_prints_report_and_ledger(finished: Finished) -> None:
    text = finished.deployment.medsam("summary", "--run", finished.run_id)
    for name in (*MODALITIES, *PREDICTORS, *(set(finished.ledger.index) - LEFT_OUT)):
        assert name in text
    assert "Reused: 0 parts" in text


def _mlflow(deployment: Deployment) -> MlflowClient:
    return MlflowClient(deployment.workspace.settings.tracking_uri)


def _runs(deployment: Deployment) -> dict[str, Run]:
    """Return the MLflow runs of a deployment by name; a name that occurs twice fails."""
    client = _mlflow(deployment)
    found = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    names = [run.info.run_name for run in found]
    assert len(names) == len(set(names)), names
    return dict(zip(names, found, strict=True))


def test_mlflow_has_a_finished_run_for_each_stage_under_one_parent(finished: Finished) -> None:
    runs = _runs(finished.deployment)
    parents = {name: run.data.tags.get("mlflow.parentRunId") for name, run in runs.items()}
    (parent,) = [name for name, value in parents.items() if value is None]
    stages = {"proposed/distillation", "proposed/finetuning", "proposed/evaluation"}
    assert set(runs) == stages | {parent}
    assert {parents[name] for name in stages} == {runs[parent].info.run_id}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


def test_mlflow_has_every_step_once_and_metrics_by_modality(finished: Finished) -> None:
    client, runs = _mlflow(finished.deployment), _runs(finished.deployment)
    for stage, asset in (("distillation", "student_distilled"), ("finetuning", "student_finetuned")):
        log = finished.deployment.folder(f"proposed/{asset}") / "metrics.jsonl"
        records = [json.loads(line) for line in log.read_text().splitlines()]
        points = client.get_metric_history(runs[f"proposed/{stage}"].info.run_id, "loss")
        assert [(point.step, point.value) for point in points] == [(line["step"], line["loss"]) for line in records]
    metrics = runs["proposed/evaluation"].data.metrics
    for modality in (*MODALITIES, "mean"):
        for predictor in PREDICTORS:
            assert f"test.dsc.{predictor}.{modality}" in metrics
            assert f"test.nsd.{predictor}.{modality}" in metrics


def test_the_student_is_registered_as_champion(finished: Finished) -> None:
    version = _mlflow(finished.deployment).get_model_version_by_alias("repvit-medsam-tiny", "champion")
    assert version.run_id == _runs(finished.deployment)["proposed/evaluation"].info.run_id


def _mlflow_rows(deployment: Deployment) -> dict[str, int]:
    """Count what MLflow's database holds."""
    with sqlite3.connect(deployment.home / "mlflow" / "mlflow.db") as database:
        tables = ("runs", "metrics", "params", "model_versions")
        return {table: database.execute(f"select count(*) from {table}").fetchone()[0] for table in tables}


def test_a_second_run_makes_nothing_and_imports_no_torch(finished: Finished) -> None:
    deployment = finished.deployment
    before = _mlflow_rows(deployment)
    result = deployment.python(SECOND_RUN)
    assert result["success"]
    assert not result["torch"]
    assert not [command for command in result["commands"] if "pipelines.training.trainer" in command]
    ledger = deployment.ledger()
    assert made(ledger) == set()
    assert ledger["fingerprint"].to_dict() == finished.ledger["fingerprint"].to_dict()
    assert ledger["reused"].to_dict() == finished.ledger["made"].to_dict()
    assert _mlflow_rows(deployment) == before


def _change(deployment: Deployment, case_id: str) -> None:
    """Change one pixel of a case in the source."""
    path = deployment.workspace.settings.data / f"{case_id}.npz"
    with np.load(path, allow_pickle=False) as content:
        arrays = {name: content[name] for name in content.files}
    arrays["imgs"].flat[0] ^= 1
    np.savez_compressed(path, **arrays)


def _shown(deployment: Deployment, plan: str) -> list[set[str]]:
    """Return the cases that each cache part of a plan shows; a part of the tiny profile is a microbatch."""
    table = deployment.release()
    train = table[table["split"] == "train"]["case_id"].to_numpy()
    rows: npt.NDArray[np.int32] = np.load(deployment.folder(plan) / "slots.npy", allow_pickle=False)["row"]
    return [set(train[microbatch]) for microbatch in rows.reshape(-1, 8)]


def _partly_shown(deployment: Deployment) -> pd.Series:
    """Return a flat training case that some, but not all, parts of both caches show."""
    table = deployment.release().query("split == 'train' and not is_3d")
    for row in table.to_dict("records"):
        counts = [[row["case_id"] in part for part in _shown(deployment, f"{stage}_plan")] for stage in STAGES]
        if all(any(count) and not all(count) for count in counts):
            return pd.Series(row)
    raise AssertionError("expected a case that some parts show, found none; choose another plan seed in tiny.yaml")


STAGES = ("distillation", "finetuning")


def test_a_changed_training_file_costs_its_descendants(finished: Finished, tmp_path: Path) -> None:
    deployment = finished.deployment.moved_to(tmp_path / "home")
    case = _partly_shown(deployment)
    _change(deployment, case["case_id"])
    ledger = deployment.run_pipeline().drop(index=list(LEFT_OUT))

    own_store = f"slice_store/{case['modality']}"
    assert made(ledger) == {own_store} | RELEASED | TRAINED | EVALUATED
    assert ledger.loc[ledger["made"] == 0, "reused"].gt(0).all()
    changed = ledger.index[ledger["fingerprint"] != finished.ledger["fingerprint"][ledger.index]]
    assert set(changed) == made(ledger)
    for asset, plan in (("teacher_embeddings", "distillation_plan"), ("teacher_logits", "finetuning_plan")):
        shown = [case["case_id"] in part for part in _shown(deployment, plan)]
        assert (ledger["made"][asset], ledger["reused"][asset]) == (sum(shown), len(shown) - sum(shown))


def test_a_changed_test_file_trains_nothing_again(finished: Finished, tmp_path: Path) -> None:
    deployment = finished.deployment.moved_to(tmp_path / "home")
    case = deployment.release().query("split == 'test' and not is_3d").iloc[0]
    _change(deployment, case["case_id"])
    ledger = deployment.run_pipeline()
    assert made(ledger) == {f"slice_store/{case['modality']}"} | RELEASED | EVALUATED


@pytest.fixture(scope="module")
def evaluated(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, Path, str]:
    """Score the finished student on its own sample folder; return the rows, the report's folder and the output."""
    deployment, output = finished.deployment, tmp_path_factory.mktemp("evaluated")
    data = deployment.workspace.settings.data
    model = deployment.folder("proposed/student_finetuned") / "model.safetensors"
    arguments = ("--data", str(data), "--groups", str(data / "groups.csv"), "-o", str(output))
    text = deployment.medsam("evaluate", "--model", str(model), *arguments)
    return pd.read_parquet(output / "cases.parquet"), output, text


def _by_case(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.sort_values("case_id", ignore_index=True)


def test_evaluate_gives_the_assets_rows(finished: Finished, evaluated: tuple[pd.DataFrame, Path, str]) -> None:
    rows = evaluated[0].query("predictor == 'student'")
    asset = finished.deployment.rows("proposed/scores")
    for split in ("validation", "test"):
        expected, found = (_by_case(table[table["split"] == split]) for table in (asset, rows))
        assert len(expected) >= len(MODALITIES)
        pd.testing.assert_frame_equal(found, expected, check_exact=True)


def test_evaluate_marks_cases_that_training_saw(finished: Finished, evaluated: tuple[pd.DataFrame, Path, str]) -> None:
    rows, output, text = evaluated
    release = finished.deployment.release().drop_duplicates("case_id").set_index("case_id")["split"]
    student = rows.query("predictor == 'student'").set_index("case_id")["split"]
    assert student.to_dict() == release.to_dict()
    comparison = pd.read_csv(output / "comparison.csv").set_index("modality")
    assert comparison.loc["mean of modalities", "cases"] == (release == "test").sum()
    assert f"{(release != 'test').sum()} cases were seen in training or validation" in text


def test_evaluate_takes_the_champion_from_the_registry(finished: Finished, tmp_path: Path) -> None:
    deployment, output = finished.deployment, tmp_path / "report"
    data = deployment.workspace.settings.data / "Fundus"
    deployment.medsam(
        "evaluate", "--model", "models:/repvit-medsam-tiny@champion", "--data", str(data), "-o", str(output)
    )
    found = pd.read_parquet(output / "cases.parquet").query("predictor == 'student'").set_index("case_id")
    release = deployment.release().query("modality == 'Fundus'").set_index("case_id")["split"]
    assert found["split"].rename(lambda name: f"Fundus/{name}").to_dict() == release.to_dict()
    asset = deployment.rows("proposed/scores").query("modality == 'Fundus'").set_index("case_id")
    pd.testing.assert_series_equal(
        found["dsc"].rename(lambda name: f"Fundus/{name}")[asset.index], asset["dsc"], check_exact=True
    )
