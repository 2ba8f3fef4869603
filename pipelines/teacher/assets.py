"""Assets of the teacher and its answers. What belongs here: the graph's nodes, no work."""

from collections.abc import Iterator

import dagster as dg

from medsam_core.questions import AnswerKind
from pipelines.base.asset_keys import distillation_asset
from pipelines.base.launch import launch_trainer
from pipelines.base.resources import WorkspaceResource
from pipelines.base.results import markdown_table, materialised
from pipelines.base.values import CacheRef, PartsMade, TeacherRef
from pipelines.base.variants import OWNERS, PROPOSED, Variant
from pipelines.ingest.assets import RETRY
from pipelines.teacher import caches
from pipelines.teacher import tasks as teacher
from storage.base.references import ArtefactRef

TEACHER_POOL = "teacher"
"""At most one step at a time runs the teacher on the accelerator."""


@dg.asset(group_name="teacher", kinds={"pytorch"})
def teacher_checkpoint(
    context: dg.AssetExecutionContext, workspace: WorkspaceResource, dataset_release: ArtefactRef
) -> dg.Output[TeacherRef]:
    """The verified teacher: MedSAM ViT-B from its file, or the stand-in, trained further where the profile says so."""
    space = workspace.open()
    result = teacher.make_teacher(space, dataset_release, launch_trainer(context), context.log.info)
    return materialised(context.op_execution_context, space, "teacher_checkpoint", result)


_INS = {"teacher_model": dg.In(TeacherRef), "plan": dg.In(ArtefactRef), "release": dg.In(ArtefactRef)}
"""Of a step of a cache."""


def _teacher_cache(
    variant: Variant, answers: AnswerKind, key: list[str], plan_key: list[str], text: str
) -> dg.AssetsDefinition:
    stem = "_".join(key)

    @dg.op(
        name=f"plan_{stem}",
        pool=TEACHER_POOL,  # it may have to ask the teacher, to learn what an answer costs
        out=dg.DynamicOut(list),
        ins=_INS,
    )
    def plan_parts(
        context: dg.OpExecutionContext,
        workspace: WorkspaceResource,
        teacher_model: TeacherRef,
        plan: ArtefactRef,
        release: ArtefactRef,
    ) -> Iterator[dg.DynamicOutput[list[str]]]:
        space = workspace.open()
        batches = caches.plan_cache(space, variant, answers, (teacher_model, plan, release), context.log.info)
        for number, batch in enumerate(batches):
            yield dg.DynamicOutput(batch, mapping_key=f"batch_{number:04d}")

    @dg.op(
        name=f"write_{stem}",
        retry_policy=RETRY,
        pool=TEACHER_POOL,
        ins=_INS,
    )
    def write(
        context: dg.OpExecutionContext,
        workspace: WorkspaceResource,
        part_ids: list[str],
        teacher_model: TeacherRef,
        plan: ArtefactRef,
        release: ArtefactRef,
    ) -> PartsMade:
        inputs = (teacher_model, plan, release)
        return caches.write_cache_parts(workspace.open(), variant, answers, inputs, part_ids, context.log.info)

    @dg.op(
        name=f"publish_{stem}",
        ins=_INS,
    )
    def publish(
        context: dg.OpExecutionContext,
        workspace: WorkspaceResource,
        teacher_model: TeacherRef,
        plan: ArtefactRef,
        release: ArtefactRef,
        written: list[PartsMade],
    ) -> dg.Output[CacheRef]:
        space = workspace.open()
        result = caches.publish_cache(space, variant, answers, (teacher_model, plan, release), written)
        return materialised(context, space, "/".join(key), result)

    @dg.graph_asset(
        key=key,
        group_name="teacher",
        kinds={"zarr"},
        ins={
            "teacher_model": dg.AssetIn("teacher_checkpoint"),
            "plan": dg.AssetIn(plan_key),
            "release": dg.AssetIn("dataset_release"),
        },
        description=text,
    )
    def cache(teacher_model: TeacherRef, plan: ArtefactRef, release: ArtefactRef) -> CacheRef:
        parts = plan_parts(teacher_model, plan, release)
        written = parts.map(lambda part: write(part, teacher_model, plan, release))
        return publish(teacher_model, plan, release, written.collect())  # type: ignore[no-any-return]

    return cache


def _embeddings(variant: Variant) -> dg.AssetsDefinition:
    key = distillation_asset(variant, "teacher_embeddings")
    plan_key = distillation_asset(variant, "distillation_plan")
    text = "The teacher's embedding of exactly the image each distillation slot shows, in plan order."
    return _teacher_cache(variant, "embeddings", key, plan_key, text)


CHECKED_SLOTS = 8
"""Slots of a cache that its check computes again."""


def _answers_check(
    variant: Variant, answers: AnswerKind, key: list[str], plan_key: list[str]
) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=key,
        name="answers_recomputed",
        pool=TEACHER_POOL,
        additional_ins={
            "teacher_model": dg.AssetIn("teacher_checkpoint"),
            "plan": dg.AssetIn(plan_key),
            "release": dg.AssetIn("dataset_release"),
        },
        description="Random slots, computed again, are what the cache holds; asks the teacher.",
    )
    def recomputed(
        context: dg.AssetCheckExecutionContext,
        workspace: WorkspaceResource,
        teacher_model: TeacherRef,
        plan: ArtefactRef,
        release: ArtefactRef,
    ) -> dg.AssetCheckResult:
        inputs = (teacher_model, plan, release)
        found = caches.check_answers(workspace.open(), variant, answers, inputs, CHECKED_SLOTS)
        if not len(found):
            context.log.info(f"{'/'.join(key)}: nothing is cached, the teacher is asked online")
            return dg.AssetCheckResult(passed=True, description="nothing is cached")
        passed = bool((found["error"] <= found["allowed"]).all())
        worst = found.sort_values("error").iloc[-1]
        say = context.log.info if passed else context.log.error
        say(
            f"{'/'.join(key)}: {len(found)} slots computed again, {(found['error'] > found['allowed']).sum()} differ; "
            f"slot {worst['slot']:.0f} most, by {worst['error']:.2g} of {worst['allowed']:.2g} allowed"
        )
        return dg.AssetCheckResult(passed=passed, metadata={"slots": dg.MetadataValue.md(markdown_table(found))})

    return recomputed


teacher_logits = _teacher_cache(
    PROPOSED,
    "logits",
    ["teacher_logits"],
    ["finetuning_plan"],
    "The teacher's mask probabilities on the loss grid for each fine-tuning slot's boxes, in plan order.",
)


def _embeddings_check(variant: Variant) -> dg.AssetChecksDefinition:
    keys = (distillation_asset(variant, name) for name in ("teacher_embeddings", "distillation_plan"))
    return _answers_check(variant, "embeddings", *keys)


PROPOSED_CHECKS = [
    _embeddings_check(PROPOSED),
    _answers_check(PROPOSED, "logits", ["teacher_logits"], ["finetuning_plan"]),
]

CHECKS = [*PROPOSED_CHECKS, *[_embeddings_check(variant) for variant in OWNERS if variant is not PROPOSED]]

ASSETS = [
    teacher_checkpoint,
    *[_embeddings(variant) for variant in OWNERS],
    teacher_logits,
]
