"""Assets of the plans and the training stages of each variant. What belongs here: the graph's nodes, no work."""

import dagster as dg

from medsam_core.learning.stages import DISTILLATION, FINETUNING
from pipelines.base.asset_keys import distillation_asset
from pipelines.base.results import materialised
from pipelines.base.values import CacheRef, TeacherRef
from pipelines.base.variants import OWNERS, PLANNERS, PROPOSED, VARIANTS, Variant
from pipelines.runs.executors import TRACKED
from pipelines.runs.launch import launch_trainer
from pipelines.runs.resources import WorkspaceResource
from pipelines.training import plans, students
from storage.base.references import ArtefactRef

TRAINER_POOL = "trainer"
"""At most one training at a time."""


def _distillation_plan(variant: Variant) -> dg.AssetsDefinition:
    key = distillation_asset(variant, "distillation_plan")

    @dg.asset(
        key=key,
        group_name="plans",
        kinds={"numpy"},
        ins={"release": dg.AssetIn("dataset_release")},
        description="Which slice, crop, flip and mixing every slot of every distillation step gets: "
        f"{variant.description}",
    )
    def plan(
        context: dg.AssetExecutionContext, workspace: WorkspaceResource, release: ArtefactRef
    ) -> dg.Output[ArtefactRef]:
        space = workspace.open()
        result = plans.make_plan(space, release, variant.distillation(space.profile), DISTILLATION)
        return materialised(context.op_execution_context, space, "/".join(key), result)

    return plan


@dg.asset(group_name="plans", kinds={"numpy"})
def finetuning_plan(
    context: dg.AssetExecutionContext, workspace: WorkspaceResource, dataset_release: ArtefactRef
) -> dg.Output[ArtefactRef]:
    """Which slice, label, flip and jittered box every slot of every fine-tuning step gets; variants read its start."""
    space = workspace.open()
    result = plans.make_plan(space, dataset_release, PROPOSED.finetuning(space.profile), FINETUNING)
    return materialised(context.op_execution_context, space, "finetuning_plan", result)


def _distilled(variant: Variant) -> dg.AssetsDefinition:
    key = [variant.name, "student_distilled"]

    @dg.asset(
        key=key,
        group_name=variant.name,
        kinds={"pytorch"},
        pool=TRAINER_POOL,
        op_tags=TRACKED,
        ins={
            "release": dg.AssetIn("dataset_release"),
            "statistics": dg.AssetIn("pixel_statistics"),
            "plan": dg.AssetIn(distillation_asset(variant, "distillation_plan")),
            "teacher": dg.AssetIn("teacher_checkpoint"),
            "cache": dg.AssetIn(distillation_asset(variant, "teacher_embeddings")),
        },
        description=f"Stage 1, the teacher's encoder distilled into RepViT (Table 3). {variant.description}",
    )
    def distilled(
        context: dg.AssetExecutionContext,
        workspace: WorkspaceResource,
        release: ArtefactRef,
        statistics: ArtefactRef,
        plan: ArtefactRef,
        teacher: TeacherRef,
        cache: CacheRef,
    ) -> dg.Output[ArtefactRef]:
        space = workspace.open()
        inputs = students.StageInputs(release, statistics, plan, teacher, cache)
        result = students.distil(space, variant, inputs, launch_trainer(context), context.log.info)
        return materialised(context.op_execution_context, space, "/".join(key), result)

    return distilled


def _finetuned(variant: Variant) -> dg.AssetsDefinition:
    key = [variant.name, "student_finetuned"]
    ins = {
        "release": dg.AssetIn("dataset_release"),
        "statistics": dg.AssetIn("pixel_statistics"),
        "plan": dg.AssetIn("finetuning_plan"),
        "teacher": dg.AssetIn("adapted_teacher"),
        "distilled": dg.AssetIn(distillation_asset(variant, "student_distilled")),
    }
    if variant.mask_distillation:
        ins["cache"] = dg.AssetIn("teacher_logits", dagster_type=CacheRef)

    @dg.asset(
        key=key,
        group_name=variant.name,
        kinds={"pytorch"},
        pool=TRAINER_POOL,
        op_tags=TRACKED,
        ins=ins,
        description=f"Stage 2, the whole student fine-tuned (Table 2). {variant.description}",
    )
    def finetuned(
        context: dg.AssetExecutionContext,
        workspace: WorkspaceResource,
        release: ArtefactRef,
        statistics: ArtefactRef,
        plan: ArtefactRef,
        teacher: TeacherRef,
        distilled: ArtefactRef,
        **answers: CacheRef,
    ) -> dg.Output[ArtefactRef]:
        space = workspace.open()
        inputs = students.StageInputs(release, statistics, plan, teacher, answers.get("cache"))
        result = students.finetune(space, variant, inputs, distilled, launch_trainer(context), context.log.info)
        return materialised(context.op_execution_context, space, "/".join(key), result)

    return finetuned


ASSETS = [
    finetuning_plan,
    *[_distillation_plan(variant) for variant in PLANNERS],
    *[_distilled(variant) for variant in OWNERS],
    *[_finetuned(variant) for variant in VARIANTS],
]
