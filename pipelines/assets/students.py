"""Assets of the two training stages, made for each variant. What belongs here: the graph's nodes, no work."""

from typing import Any

import dagster as dg

from pipelines.assets.keys import distillation_asset
from pipelines.assets.teacher import OWNERS
from pipelines.launch import launch_trainer
from pipelines.resources import WorkspaceResource
from pipelines.results import materialised
from pipelines.tasks import students
from pipelines.variants import VARIANTS, Variant

Value = dict[str, Any]

TRAINER_POOL = "trainer"
"""At most one training at a time."""


def _distilled(variant: Variant) -> dg.AssetsDefinition:
    key = [variant.name, "student_distilled"]

    @dg.asset(
        key=key,
        group_name=variant.name,
        kinds={"pytorch"},
        pool=TRAINER_POOL,
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
        release: Value,
        statistics: Value,
        plan: Value,
        teacher: Value,
        cache: Value,
    ) -> dg.Output[Value]:
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
        "teacher": dg.AssetIn("teacher_checkpoint"),
        "distilled": dg.AssetIn(distillation_asset(variant, "student_distilled")),
    }
    if variant.mask_distillation:
        ins["cache"] = dg.AssetIn("teacher_logits")

    @dg.asset(
        key=key,
        group_name=variant.name,
        kinds={"pytorch"},
        pool=TRAINER_POOL,
        ins=ins,
        description=f"Stage 2, the whole student fine-tuned (Table 2). {variant.description}",
    )
    def finetuned(
        context: dg.AssetExecutionContext, workspace: WorkspaceResource, distilled: Value, **values: Value
    ) -> dg.Output[Value]:
        space = workspace.open()
        inputs = students.StageInputs(cache=values.pop("cache", None), **values)
        result = students.finetune(space, variant, inputs, distilled, launch_trainer(context), context.log.info)
        return materialised(context.op_execution_context, space, "/".join(key), result)

    return finetuned


ASSETS = [*[_distilled(variant) for variant in OWNERS], *[_finetuned(variant) for variant in VARIANTS]]
