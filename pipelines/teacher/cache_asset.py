"""A teacher cache in the asset graph. What belongs here: its steps, the asset made of them, its check; no work.

Not here: which caches there are (`pipelines.teacher.assets`), the work (`pipelines.teacher.caches`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import dagster as dg

from pipelines.base.results import markdown_table, materialised
from pipelines.base.values import CacheRef, PartsMade, TeacherRef
from pipelines.ingest.assets import RETRY
from pipelines.runs.resources import WorkspaceResource
from pipelines.teacher import caches
from pipelines.teacher.cache_user import CacheUser
from storage.base.errors import StorageError
from storage.base.references import ArtefactRef

TEACHER_POOL = "teacher"
"""At most one step at a time runs the teacher on the accelerator."""


CHECKED_SLOTS = 8
"""Slots of a cache that its check computes again."""


_INS = {"teacher_model": dg.In(TeacherRef), "plan": dg.In(ArtefactRef), "release": dg.In(ArtefactRef)}
"""What each step of a cache is given."""


@dataclass(frozen=True)
class CacheAsset:
    """One teacher cache of the graph.

    Attributes:
        user: Whose plan is answered.
        key: Of the asset.
        plan_key: Of the plan's asset.
        description: What the page says of it.
        teacher: The teacher's asset.
    """

    user: CacheUser
    key: list[str]
    plan_key: list[str]
    description: str
    teacher: str = "teacher_checkpoint"

    @property
    def name(self) -> str:
        """The asset's name."""
        return "/".join(self.key)

    def step(self, verb: str) -> str:
        """Return the name of one of its steps."""
        return "_".join([verb, *self.key])

    def ins(self) -> dict[str, dg.AssetIn]:
        """Return the assets that its steps and its check read."""
        return {
            "teacher_model": dg.AssetIn(self.teacher),
            "plan": dg.AssetIn(self.plan_key),
            "release": dg.AssetIn("dataset_release"),
        }


def _plan_step(cache: CacheAsset) -> dg.OpDefinition:
    # In the pool, for it may have to ask the teacher, to learn what an answer costs.
    @dg.op(name=cache.step("plan"), pool=TEACHER_POOL, out=dg.DynamicOut(list), ins=_INS)
    def plan_parts(
        context: dg.OpExecutionContext,
        workspace: WorkspaceResource,
        teacher_model: TeacherRef,
        plan: ArtefactRef,
        release: ArtefactRef,
    ) -> Iterator[dg.DynamicOutput[list[str]]]:
        inputs = (teacher_model, plan, release)
        batches = caches.plan_cache(workspace.open(), cache.user, inputs, context.log.info)
        for number, batch in enumerate(batches):
            yield dg.DynamicOutput(batch, mapping_key=f"batch_{number:04d}")

    return plan_parts


def _write_step(cache: CacheAsset) -> dg.OpDefinition:
    @dg.op(name=cache.step("write"), retry_policy=RETRY, pool=TEACHER_POOL, ins=_INS)
    def write(
        context: dg.OpExecutionContext,
        workspace: WorkspaceResource,
        part_ids: list[str],
        teacher_model: TeacherRef,
        plan: ArtefactRef,
        release: ArtefactRef,
    ) -> PartsMade:
        inputs, log = (teacher_model, plan, release), context.log.info
        return caches.write_cache_parts(workspace.open(), cache.user, inputs, part_ids, log)

    return write


def _publish_step(cache: CacheAsset) -> dg.OpDefinition:
    @dg.op(name=cache.step("publish"), retry_policy=RETRY, ins=_INS)
    def publish(
        context: dg.OpExecutionContext,
        workspace: WorkspaceResource,
        teacher_model: TeacherRef,
        plan: ArtefactRef,
        release: ArtefactRef,
        written: list[PartsMade],
    ) -> dg.Output[CacheRef]:
        space, inputs = workspace.open(), (teacher_model, plan, release)
        result = caches.publish_cache(space, cache.user, inputs, written)
        return materialised(context, space, cache.name, result)

    return publish


def cache_asset(cache: CacheAsset) -> dg.AssetsDefinition:
    """Return the asset: its parts are planned, written by mapped steps, and published."""
    plan_parts, write, publish = _plan_step(cache), _write_step(cache), _publish_step(cache)

    @dg.graph_asset(key=cache.key, group_name="teacher", kinds={"zarr"}, ins=cache.ins(), description=cache.description)
    def answered(teacher_model: TeacherRef, plan: ArtefactRef, release: ArtefactRef) -> CacheRef:
        parts = plan_parts(teacher_model, plan, release)
        written = parts.map(lambda part: write(part, teacher_model, plan, release))
        return publish(teacher_model, plan, release, written.collect())  # type: ignore[no-any-return]

    return answered


def answers_check(cache: CacheAsset) -> dg.AssetChecksDefinition:
    """Return the check that asks the teacher again about some slots."""

    @dg.asset_check(
        asset=cache.key,
        name="answers_recomputed",
        pool=TEACHER_POOL,
        additional_ins=cache.ins(),
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
        try:
            found = caches.check_answers(workspace.open(), cache.user, inputs, CHECKED_SLOTS)
        except StorageError as error:
            context.log.warning(f"{cache.name}: {error}")
            return dg.AssetCheckResult(passed=False, description=str(error))
        if not len(found):
            context.log.info(f"{cache.name}: nothing is cached")
            return dg.AssetCheckResult(passed=True, description="nothing is cached")
        passed = bool((found["error"] <= found["allowed"]).all())
        worst = found.sort_values("error").iloc[-1]
        say = context.log.info if passed else context.log.error
        say(
            f"{cache.name}: {len(found)} slots computed again, {(found['error'] > found['allowed']).sum()} differ; "
            f"slot {worst['slot']:.0f} most, by {worst['error']:.2g} of {worst['allowed']:.2g} allowed"
        )
        return dg.AssetCheckResult(passed=passed, metadata={"slots": dg.MetadataValue.md(markdown_table(found))})

    return recomputed
