"""Assets of predictions and reports. What belongs here: the graph's nodes and checks, no work."""

import dagster as dg

from pipelines.base.executors import TRACKED
from pipelines.base.resources import WorkspaceResource
from pipelines.base.results import materialised
from pipelines.base.values import TeacherRef
from pipelines.base.variants import ABLATIONS, VARIANTS, Variant
from pipelines.evaluation import tasks as evaluation
from storage.base.references import ArtefactRef


@dg.asset(
    group_name="evaluation",
    kinds={"pytorch"},
    ins={
        "release": dg.AssetIn("dataset_release"),
        "statistics": dg.AssetIn("pixel_statistics"),
        "teacher": dg.AssetIn("teacher_checkpoint"),
        "student": dg.AssetIn(["proposed", "student_finetuned"]),
    },
)
def baseline_predictions(
    context: dg.AssetExecutionContext,
    workspace: WorkspaceResource,
    release: ArtefactRef,
    statistics: ArtefactRef,
    teacher: TeacherRef,
    student: ArtefactRef,
) -> dg.Output[ArtefactRef]:
    """What the student is held against: box, ellipse, teacher, untrained student, and the student shown no image."""
    space = workspace.open()
    inputs = evaluation.BaselineInputs(release, statistics, teacher, student)
    result = evaluation.predict_baselines(space, inputs, context.log.info)
    return materialised(context.op_execution_context, space, "baseline_predictions", result)


@dg.asset_check(asset=baseline_predictions)
def teacher_beats_ellipse(baseline_predictions: ArtefactRef) -> dg.AssetCheckResult:
    """The teacher is worth learning from: its mean test DSC lies above the ellipse's."""
    means = baseline_predictions.info["test_dsc"]
    return dg.AssetCheckResult(
        passed=bool(means["teacher"] > means["ellipse"]), severity=dg.AssetCheckSeverity.WARN, metadata=means
    )


def _predictions(variant: Variant) -> dg.AssetsDefinition:
    key = [variant.name, "predictions"]

    @dg.asset(
        key=key,
        group_name=variant.name,
        kinds={"pytorch"},
        ins={"release": dg.AssetIn("dataset_release"), "student": dg.AssetIn([variant.name, "student_finetuned"])},
        description=f"Masks and per-label scores of validation and test cases. {variant.description}",
    )
    def predictions(
        context: dg.AssetExecutionContext, workspace: WorkspaceResource, release: ArtefactRef, student: ArtefactRef
    ) -> dg.Output[ArtefactRef]:
        space = workspace.open()
        result = evaluation.predict_student(space, variant, release, student, context.log.info)
        return materialised(context.op_execution_context, space, "/".join(key), result)

    return predictions


def _report(variant: Variant) -> dg.AssetsDefinition:
    key = [variant.name, "evaluation_report"]

    @dg.asset(
        key=key,
        group_name=variant.name,
        kinds={"mlflow"},
        op_tags=TRACKED,
        ins={
            "release": dg.AssetIn("dataset_release"),
            "student": dg.AssetIn([variant.name, "student_finetuned"]),
            "predictions": dg.AssetIn([variant.name, "predictions"]),
            "baselines": dg.AssetIn("baseline_predictions"),
        },
        description=f"DSC and NSD by modality beside the baselines, in MLflow. {variant.description}",
    )
    def report(
        context: dg.AssetExecutionContext,
        workspace: WorkspaceResource,
        release: ArtefactRef,
        student: ArtefactRef,
        predictions: ArtefactRef,
        baselines: ArtefactRef,
    ) -> dg.Output[ArtefactRef]:
        space = workspace.open()
        inputs = evaluation.ReportInputs(release, student, predictions, baselines)
        result = evaluation.report(space, variant, inputs, context.log.info)
        return materialised(context.op_execution_context, space, "/".join(key), result)

    return report


@dg.asset(
    group_name="evaluation",
    kinds={"mlflow"},
    op_tags=TRACKED,
    ins={
        "release": dg.AssetIn("dataset_release"),
        "proposed": dg.AssetIn(["proposed", "student_finetuned"]),
        **{variant.name: dg.AssetIn([variant.name, "predictions"], dagster_type=ArtefactRef) for variant in ABLATIONS},
    },
)
def ablation_report(
    context: dg.AssetExecutionContext,
    workspace: WorkspaceResource,
    release: ArtefactRef,
    proposed: ArtefactRef,
    **ablations: ArtefactRef,
) -> dg.Output[ArtefactRef]:
    """Variants side by side as in the paper's Table 4, all after the same number of fine-tuning epochs."""
    space = workspace.open()
    result = evaluation.compare_variants(space, release, proposed, ablations, context.log.info)
    return materialised(context.op_execution_context, space, "ablation_report", result)


@dg.asset(group_name="evaluation", kinds={"mlflow"}, op_tags=TRACKED, ins={"release": dg.AssetIn("dataset_release")})
def registered_model_report(
    context: dg.AssetExecutionContext, workspace: WorkspaceResource, release: ArtefactRef
) -> dg.Output[ArtefactRef]:
    """The model behind the registry's `champion` alias, scored on the release."""
    space = workspace.open()
    result = evaluation.report_registered(space, release, context.log.info)
    return materialised(context.op_execution_context, space, "registered_model_report", result)


predictions = [_predictions(variant) for variant in VARIANTS]
reports = [_report(variant) for variant in VARIANTS]

ABLATION_ASSETS = [ablation_report]
ASSETS = [baseline_predictions, *predictions, *reports, ablation_report, registered_model_report]
CHECKS = [teacher_beats_ellipse]
