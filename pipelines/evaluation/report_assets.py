"""Assets of reports. What belongs here: the graph's nodes, no work. Not here: predictions and scores (`assets`)."""

import dagster as dg

from pipelines.base.results import materialised
from pipelines.base.variants import ABLATIONS, VARIANTS, Variant
from pipelines.evaluation.registered import report_registered
from pipelines.evaluation.variant_reports import ReportInputs, compare_variants, report
from pipelines.runs.executors import TRACKED
from pipelines.runs.resources import WorkspaceResource
from storage.base.references import ArtefactRef


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
            "scores": dg.AssetIn([variant.name, "scores"]),
            "baselines": dg.AssetIn("baseline_scores"),
        },
        description=f"Metrics by modality beside the baselines, in MLflow. {variant.description}",
    )
    def evaluation_report(
        context: dg.AssetExecutionContext,
        workspace: WorkspaceResource,
        release: ArtefactRef,
        student: ArtefactRef,
        scores: ArtefactRef,
        baselines: ArtefactRef,
    ) -> dg.Output[ArtefactRef]:
        space = workspace.open()
        inputs = ReportInputs(release, student, scores, baselines)
        result = report(space, variant, inputs, context.log.info)
        return materialised(context.op_execution_context, space, "/".join(key), result)

    return evaluation_report


@dg.asset(
    group_name="evaluation",
    kinds={"mlflow"},
    op_tags=TRACKED,
    ins={
        "release": dg.AssetIn("dataset_release"),
        "proposed": dg.AssetIn(["proposed", "student_finetuned"]),
        **{variant.name: dg.AssetIn([variant.name, "scores"], dagster_type=ArtefactRef) for variant in ABLATIONS},
    },
)
def ablation_report(
    context: dg.AssetExecutionContext,
    workspace: WorkspaceResource,
    release: ArtefactRef,
    proposed: ArtefactRef,
    **ablations: ArtefactRef,
) -> dg.Output[ArtefactRef]:
    """All variants in one table, as in the paper's Table 4, after the same number of fine-tuning epochs."""
    space = workspace.open()
    result = compare_variants(space, release, proposed, ablations, context.log.info)
    return materialised(context.op_execution_context, space, "ablation_report", result)


@dg.asset(group_name="evaluation", kinds={"mlflow"}, op_tags=TRACKED, ins={"release": dg.AssetIn("dataset_release")})
def registered_model_report(
    context: dg.AssetExecutionContext, workspace: WorkspaceResource, release: ArtefactRef
) -> dg.Output[ArtefactRef]:
    """Scores of the registry's `champion` on the release."""
    space = workspace.open()
    result = report_registered(space, release, context.log.info)
    return materialised(context.op_execution_context, space, "registered_model_report", result)


reports = [_report(variant) for variant in VARIANTS]

ABLATION_ASSETS = [ablation_report]
ASSETS = [*reports, ablation_report, registered_model_report]
