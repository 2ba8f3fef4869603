"""The code location as Dagster loads it. What belongs here: which assets, jobs and schedules there are, and loading."""

import subprocess
from pathlib import Path

import dagster as dg
import pytest

from storage.base.modalities import MODALITIES
from tests.integration.deployment import DAGSTER, ROOT, Deployment

ASSETS = sorted(
    [
        "ablation_report",
        "adaptation_embeddings",
        "adaptation_plan",
        "adapted_teacher",
        "baseline_predictions",
        "baseline_scores",
        "dataset_release",
        "distillation_plan",
        "finetuning_plan",
        "pixel_statistics",
        "raw_manifest",
        "registered_model_report",
        "slice_index",
        *[f"slice_store/{modality}" for modality in MODALITIES],
        "teacher_checkpoint",
        "teacher_embeddings",
        "teacher_logits",
        "proposed/student_distilled",
        "proposed/student_finetuned",
        "proposed/predictions",
        "proposed/scores",
        "proposed/evaluation_report",
        "no_mask_distillation/student_finetuned",
        "no_mask_distillation/predictions",
        "no_mask_distillation/scores",
        "no_mask_distillation/evaluation_report",
        "no_mixing/distillation_plan",
        "no_mixing/teacher_embeddings",
        "no_mixing/student_distilled",
        "no_mixing/student_finetuned",
        "no_mixing/predictions",
        "no_mixing/scores",
        "no_mixing/evaluation_report",
        "no_distillation_augmentation/distillation_plan",
        "no_distillation_augmentation/teacher_embeddings",
        "no_distillation_augmentation/student_distilled",
        "no_distillation_augmentation/student_finetuned",
        "no_distillation_augmentation/predictions",
        "no_distillation_augmentation/scores",
        "no_distillation_augmentation/evaluation_report",
        "pyramid/student_distilled",
        "pyramid/student_finetuned",
        "pyramid/predictions",
        "pyramid/scores",
        "pyramid/evaluation_report",
    ]
)


@pytest.fixture
def definitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dg.Definitions:
    """The code location over an empty home, with the tiny profile."""
    deployment = Deployment(tmp_path / "home")
    for name, value in deployment.environment.items():
        if name.startswith("MEDSAM_"):
            monkeypatch.setenv(name, value)
    from pipelines.definitions import build_defs

    return build_defs({"MEDSAM_HOME": str(deployment.home)})


def test_asset_keys(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    assert sorted(key.to_user_string() for key in graph.get_all_asset_keys()) == ASSETS


def test_jobs_and_schedule(definitions: dg.Definitions) -> None:
    def keys(job: str) -> set[str]:
        layer = definitions.resolve_job_def(job).asset_layer
        return {key.to_user_string() for key in layer.selected_asset_keys}

    ablations_only = {name for name in ASSETS if name.startswith(("no_", "pyramid/"))} | {"ablation_report"}
    assert keys("full_pipeline") == set(ASSETS) - ablations_only - {"registered_model_report"}
    assert keys("ablations") == set(ASSETS) - {"registered_model_report"}
    assert keys("reevaluate") == {"registered_model_report"}
    stores = {f"slice_store/{modality}" for modality in MODALITIES}
    assert keys("ingest") == stores | {"raw_manifest", "slice_index", "dataset_release", "pixel_statistics"}
    schedule = definitions.resolve_schedule_def("nightly_reevaluation")
    assert (schedule.job_name, schedule.cron_schedule) == ("reevaluate", "0 3 * * *")


def test_dagster_validates_the_workspace_file(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "home")
    (deployment.home / "dagster").mkdir(parents=True)
    environment = {name: value for name, value in deployment.environment.items() if name != "DAGSTER_MODULE_NAME"}
    command = [DAGSTER, "definitions", "validate", "-w", str(ROOT / "workspace.yaml")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Validation successful for code location medsam" in done.stdout + done.stderr


def test_one_modality_can_be_materialised_alone(definitions: dg.Definitions, tmp_path: Path) -> None:
    assets = [asset for asset in definitions.assets or [] if isinstance(asset, dg.AssetsDefinition)]
    instance = dg.DagsterInstance.ephemeral()
    for key in ("raw_manifest", "slice_store/Fundus"):
        result = dg.materialize(
            assets, selection=[dg.AssetKey(key.split("/"))], instance=instance, resources=definitions.resources
        )
        assert result.success
    stores = tmp_path / "home" / "tiny" / "stores"
    assert [path.parent.name for path in stores.glob("*/manifest.json")] == ["Fundus"]
    event = instance.get_latest_materialization_event(dg.AssetKey(["slice_store", "Fundus"]))
    assert event is not None
    assert event.asset_materialization is not None
    metadata = event.asset_materialization.metadata
    assert metadata["cases"].value == 4
    assert "samples" in metadata


def test_the_check_of_a_store_reads_every_byte(definitions: dg.Definitions, tmp_path: Path) -> None:
    assets = [asset for asset in definitions.assets or [] if isinstance(asset, dg.AssetsDefinition)]
    checks = list(definitions.asset_checks or [])
    instance = dg.DagsterInstance.ephemeral()

    def run(selection: dg.AssetSelection) -> dg.ExecuteInProcessResult:
        both = [*assets, *checks]
        return dg.materialize(both, selection=selection, instance=instance, resources=definitions.resources)

    def passed() -> bool:
        check = dg.AssetCheckKey(dg.AssetKey(["slice_store", "Fundus"]), "is_whole")
        (evaluation,) = run(dg.AssetSelection.checks(check)).get_asset_check_evaluations()
        return bool(evaluation.passed)

    for key in ("raw_manifest", "slice_store/Fundus"):
        run(dg.AssetSelection.assets(key).without_checks())
    assert passed()
    (shard,) = (tmp_path / "home" / "tiny" / "stores" / "Fundus" / "imgs" / "c").iterdir()
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(bytes(content))
    assert not passed()


@pytest.mark.parametrize(
    ("check", "job", "count"),
    [
        ("is_whole", "verify_stores", len(MODALITIES)),
        ("is_whole", "verify_caches", 3),
        ("answers_recomputed", "verify_caches", 3),
    ],
)
def test_only_their_own_job_verifies_stores_and_caches(
    definitions: dg.Definitions, check: str, job: str, count: int
) -> None:
    def checks(name: str) -> set[str]:
        return {node.name for node in definitions.resolve_job_def(name).graph.nodes if check in node.name}

    assert len(checks(job)) == count
    for other in ("full_pipeline", "ingest", "ablations"):
        assert not checks(other)
