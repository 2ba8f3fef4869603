"""Assets of the teacher and its answers. What belongs here: the graph's nodes, no work."""

from collections.abc import Iterable

import dagster as dg

from medsam_core.learning.stages import DISTILLATION, FINETUNING
from pipelines.base.asset_keys import distillation_asset
from pipelines.base.results import materialised
from pipelines.base.values import TeacherRef
from pipelines.base.variants import PLANNERS, PROPOSED, Variant
from pipelines.runs.executors import TAUGHT
from pipelines.runs.launch import launch_trainer
from pipelines.runs.resources import WorkspaceResource
from pipelines.teacher import adaptation
from pipelines.teacher import tasks as teacher
from pipelines.teacher.cache_asset import CacheAsset, answers_check, cache_asset
from pipelines.teacher.cache_byte_check import byte_check
from pipelines.teacher.cache_user import variant_user
from storage.base.references import ArtefactRef


@dg.asset(group_name="teacher", kinds={"pytorch"}, op_tags=TAUGHT)
def teacher_checkpoint(
    context: dg.AssetExecutionContext, workspace: WorkspaceResource, dataset_release: ArtefactRef
) -> dg.Output[TeacherRef]:
    """The verified teacher: MedSAM ViT-B from its file, or the stand-in, trained further where the profile says so."""
    space = workspace.open()
    result = teacher.make_teacher(space, dataset_release, launch_trainer(context), context.log.info)
    return materialised(context.op_execution_context, space, "teacher_checkpoint", result)


@dg.asset(group_name="plans", kinds={"numpy"})
def adaptation_plan(
    context: dg.AssetExecutionContext, workspace: WorkspaceResource, dataset_release: ArtefactRef
) -> dg.Output[ArtefactRef]:
    """Which slice, label and jittered box every slot of every step gets that tunes the teacher's decoder."""
    space = workspace.open()
    result = adaptation.adaptation_plan(space, dataset_release)
    return materialised(context.op_execution_context, space, "adaptation_plan", result)


_ADAPTATION = CacheAsset(
    adaptation.USER,
    key=["adaptation_embeddings"],
    plan_key=["adaptation_plan"],
    description="The teacher's embedding of the image of each slot of the adaptation, in plan order.",
)


def _embeddings(variant: Variant) -> CacheAsset:
    return CacheAsset(
        variant_user(variant, DISTILLATION),
        key=distillation_asset(variant, "teacher_embeddings"),
        plan_key=distillation_asset(variant, "distillation_plan"),
        description="The teacher's embedding of exactly the image each distillation slot shows, in plan order.",
    )


_LOGITS = CacheAsset(
    variant_user(PROPOSED, FINETUNING),
    key=["teacher_logits"],
    plan_key=["finetuning_plan"],
    description="The teacher's mask probabilities on the loss grid for each fine-tuning slot's boxes, in plan order.",
    teacher="adapted_teacher",
)


def _checks(caches: Iterable[CacheAsset]) -> list[dg.AssetChecksDefinition]:
    return [check(cache) for cache in caches for check in (answers_check, byte_check)]


PROPOSED_CHECKS = _checks([_ADAPTATION, _embeddings(PROPOSED), _LOGITS])

CHECKS = [*PROPOSED_CHECKS, *_checks(_embeddings(variant) for variant in PLANNERS if variant is not PROPOSED)]

ASSETS = [
    teacher_checkpoint,
    adaptation_plan,
    cache_asset(_ADAPTATION),
    *[cache_asset(_embeddings(variant)) for variant in PLANNERS],
    cache_asset(_LOGITS),
]
