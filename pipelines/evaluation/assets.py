"""Assets of predictions and scores, and the teacher chosen by them. What belongs here: the graph's nodes, no work.

Not here: the reports made of scores (`report_assets`).
"""

import dagster as dg

from pipelines.base.results import materialised
from pipelines.base.values import CacheRef, TeacherRef
from pipelines.base.variants import VARIANTS, Variant
from pipelines.evaluation import teacher_choice
from pipelines.evaluation.predictions import BaselineInputs, predict_baselines, predict_student
from pipelines.evaluation.scores import better_than_ellipse, score_predictions
from pipelines.runs.executors import TRACKED
from pipelines.runs.launch import launch_trainer
from pipelines.runs.resources import WorkspaceResource
from pipelines.training.assets import TRAINER_POOL
from pipelines.training.students import StageInputs
from storage.base.references import ArtefactRef


@dg.asset(group_name="teacher", kinds={"pytorch"}, pool=TRAINER_POOL, op_tags=TRACKED)
def adapted_teacher(
    context: dg.AssetExecutionContext,
    workspace: WorkspaceResource,
    dataset_release: ArtefactRef,
    teacher_checkpoint: TeacherRef,
    adaptation_plan: ArtefactRef,
    adaptation_embeddings: CacheRef,
) -> dg.Output[TeacherRef]:
    """The teacher with its decoder tuned on the training patients, if validation patients improve; else as given."""
    space = workspace.open()
    inputs = StageInputs(dataset_release, None, adaptation_plan, teacher_checkpoint, adaptation_embeddings)
    result = teacher_choice.adapted_teacher(space, inputs, launch_trainer(context), context.log.info)
    return materialised(context.op_execution_context, space, "adapted_teacher", result)


@dg.asset(
    group_name="evaluation",
    kinds={"pytorch"},
    ins={
        "release": dg.AssetIn("dataset_release"),
        "statistics": dg.AssetIn("pixel_statistics"),
        "teacher": dg.AssetIn("adapted_teacher"),
        "given_teacher": dg.AssetIn("teacher_checkpoint"),
        "student": dg.AssetIn(["proposed", "student_finetuned"]),
    },
)
def baseline_predictions(
    context: dg.AssetExecutionContext,
    workspace: WorkspaceResource,
    release: ArtefactRef,
    statistics: ArtefactRef,
    teacher: TeacherRef,
    given_teacher: TeacherRef,
    student: ArtefactRef,
) -> dg.Output[ArtefactRef]:
    """Predictions of the baselines: box, ellipse, teacher, untrained student, and the student with a constant image.

    An adapted teacher is predicted as it was given, too.
    """
    space = workspace.open()
    inputs = BaselineInputs(release, statistics, teacher, student, given_teacher)
    result = predict_baselines(space, inputs, context.log.info)
    return materialised(context.op_execution_context, space, "baseline_predictions", result)


def _predictions(variant: Variant) -> dg.AssetsDefinition:
    key = [variant.name, "predictions"]

    @dg.asset(
        key=key,
        group_name=variant.name,
        kinds={"pytorch"},
        ins={"release": dg.AssetIn("dataset_release"), "student": dg.AssetIn([variant.name, "student_finetuned"])},
        description=f"Masks of validation and test cases. {variant.description}",
    )
    def predictions(
        context: dg.AssetExecutionContext, workspace: WorkspaceResource, release: ArtefactRef, student: ArtefactRef
    ) -> dg.Output[ArtefactRef]:
        space = workspace.open()
        result = predict_student(space, variant, release, student, context.log.info)
        return materialised(context.op_execution_context, space, "/".join(key), result)

    return predictions


def _scores(group: str, scored: dg.AssetKey, key: dg.AssetKey, remark: str) -> dg.AssetsDefinition:
    @dg.asset(
        key=key,
        group_name=group,
        kinds={"parquet"},
        ins={"release": dg.AssetIn("dataset_release"), "predictions": dg.AssetIn(scored)},
        description=f"Metrics by case and by label, of kept masks. {remark}",
    )
    def scores(
        context: dg.AssetExecutionContext, workspace: WorkspaceResource, release: ArtefactRef, predictions: ArtefactRef
    ) -> dg.Output[ArtefactRef]:
        space = workspace.open()
        result = score_predictions(space, release, predictions, context.log.info)
        return materialised(context.op_execution_context, space, key.to_user_string(), result)

    return scores


def _scores_of(variant: Variant) -> dg.AssetsDefinition:
    own = dg.AssetKey([variant.name, "predictions"]), dg.AssetKey([variant.name, "scores"])
    return _scores(variant.name, *own, variant.description)


predictions = [_predictions(variant) for variant in VARIANTS]
scores = [_scores_of(variant) for variant in VARIANTS]
baseline_scores = _scores(
    "evaluation", baseline_predictions.key, dg.AssetKey("baseline_scores"), "The baselines of the student."
)


@dg.asset_check(asset=baseline_scores)
def teacher_beats_ellipse(baseline_scores: ArtefactRef) -> dg.AssetCheckResult:
    """The teacher is useful for distillation: its mean over test cases is better than the ellipse's."""
    passed, means = better_than_ellipse(baseline_scores)
    return dg.AssetCheckResult(passed=passed, severity=dg.AssetCheckSeverity.WARN, metadata=means)


ASSETS = [adapted_teacher, baseline_predictions, *predictions, baseline_scores, *scores]
CHECKS = [teacher_beats_ellipse]
