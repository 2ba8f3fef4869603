"""The teacher's cached answers for a plan. What belongs here: what each slot's answer is made from, and computing it.

Not here: how answers are stored (`storage.teacher_cache`) or read in training (`pipelines.trainer`).

A cache is named by the teacher, the kind of answer and the plan's settings; its parts by the slots and the content of
the slices they show. So a changed slice costs the parts that show it, not the cache.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from medsam_core.plan import Plan, Stage, plan_inputs
from pipelines.results import TaskResult
from pipelines.tasks.plans import load_plan
from pipelines.tasks.releases import release_reader
from pipelines.variants import Variant
from pipelines.workspace import Workspace
from storage import teacher_cache
from storage.fingerprints import array_hash, combine, fingerprint
from storage.release_reader import ReleaseReader
from storage.teacher_cache import ArraySpec, CachePart, CacheSpec

Answers = Literal["embeddings", "logits"]
Value = dict[str, Any]
Inputs = tuple[Value, Value, Value]
"""Values of the teacher, the plan and the release."""

ANSWER_VERSION = 1
"""Raised by hand whenever the same slot gets another answer: preprocessing, rendering or the teacher's code changed."""

EMBEDDING_CHANNELS = 256


class CacheWork:
    """A cache as planned: its place, its parts, and what computes them."""

    def __init__(self, workspace: Workspace, variant: Variant, answers: Answers, inputs: Inputs) -> None:
        self.workspace = workspace
        self.answers = answers
        self.teacher, plan, self.release = inputs
        self.stage: Stage = "distillation" if answers == "embeddings" else "finetuning"
        profile = workspace.profile
        config = variant.distillation(profile) if answers == "embeddings" else variant.finetuning(profile)
        self.plan: Plan = load_plan(workspace, plan, config, self.stage)
        size = profile.student.image_size
        made_from = {
            "answers": answers,
            "version": ANSWER_VERSION,
            "teacher": self.teacher["fingerprint"],
            "plan": plan_inputs(config, self.stage, size, profile.seeds.plan),
            "n_slots": self.plan.n_plan_slots,
        }
        self.spec = CacheSpec(
            arrays=self._arrays(size // 16, config.prompts_per_slot),
            n_slots=self.plan.n_plan_slots,
            slots_per_chunk=profile.cache.slots_per_chunk,
            slots_per_shard=profile.cache.slots_per_shard,
            shards_per_part=profile.cache.shards_per_part,
            made_from=made_from,
        )
        self.digest = fingerprint(self.spec.header())
        self.root = workspace.cache_root(answers, self.digest)

    def _arrays(self, grid: int, prompts: int) -> dict[str, ArraySpec]:
        if self.answers == "embeddings":
            return {"embeddings": ArraySpec((EMBEDDING_CHANNELS, grid, grid), "float16")}
        return {"probabilities": ArraySpec((prompts, 4 * grid, 4 * grid), "probability_uint8")}

    def reader(self) -> ReleaseReader:
        """Return a reader of the training split."""
        return release_reader(self.workspace, self.release, "train")

    def parts(self, reader: ReleaseReader) -> list[CachePart]:
        """Return the cache's parts, each with the fingerprint of what its slots show."""
        names, codes = reader.columns.names("content_hash"), reader.columns.codes("content_hash")
        depth = reader.columns.numbers("z")
        slots = self.plan.slots.reshape(-1)
        groups = self.plan.groups.reshape(-1)
        size = self.plan.config.group_size
        digests = []
        for start in range(0, self.spec.n_slots, self.spec.slots_per_part):
            stop = min(start + self.spec.slots_per_part, self.spec.n_slots)
            # Mixing reaches over a whole group, so a part depends on every group it touches.
            first, last = start // size, -(-stop // size)
            shown = np.array(slots[first * size : last * size])
            rows = shown["row"].copy()
            # The row's number is an address; what it shows is its case's content and z.
            shown["row"] = depth[rows]
            draws = array_hash({"slots": shown, "groups": np.array(groups[first:last])})
            digests.append(combine([draws, *names[codes[rows]]]))
        return teacher_cache.plan_cache_parts(self.spec, digests)


def plan_cache(
    workspace: Workspace, variant: Variant, answers: Answers, inputs: Inputs, log: Callable[[str], None]
) -> list[list[str]]:
    """Return the ids of the parts that are missing, batched into steps; none where the teacher answers online."""
    if workspace.profile.cache.mode == "online":
        log(f"{answers}: the profile asks the teacher online; nothing is cached")
        return []
    work = CacheWork(workspace, variant, answers, inputs)
    parts = work.parts(work.reader())
    missing = [part.part_id for part in teacher_cache.missing_parts(work.root, work.spec, parts)]
    log(f"{answers}: {len(missing)} of {len(parts)} parts to make, {work.spec.n_slots} slots in all")
    size = workspace.profile.cache.parts_per_step
    return [missing[start : start + size] for start in range(0, len(missing), size)]


def write_cache_parts(
    workspace: Workspace,
    variant: Variant,
    answers: Answers,
    inputs: Inputs,
    part_ids: Sequence[str],
    log: Callable[[str], None],
) -> Value:
    """Let the teacher answer the slots of some parts; each is published whole or not at all."""
    import torch

    from medsam_core.models.checkpoints import load_model
    from medsam_core.rendering import render_group
    from pipelines.trainer import choose_device

    work = CacheWork(workspace, variant, answers, inputs)
    reader = work.reader()
    device = choose_device(workspace.profile)
    model = load_model(workspace.artefacts.get(work.teacher).path / "model.safetensors").to(device)
    grid = workspace.profile.student.image_size // 4
    size = work.plan.config.group_size

    def answer(group: int) -> "torch.Tensor":
        epoch, within = divmod(group, work.plan.groups_per_epoch)
        slots, record, _ = work.plan.group_slots(epoch, within)
        batch = render_group(slots, record, reader, model.image_size, grid, work.stage)
        with torch.inference_mode():
            embeddings = model.encode(batch.images.to(device))
            if answers == "embeddings":
                return embeddings.float().cpu()
            logits, _ = model.decode(embeddings, batch.boxes.to(device))
            return logits.float().sigmoid().cpu()

    wanted = set(part_ids)
    for part in (part for part in work.parts(reader) if part.part_id in wanted):
        first, last = part.start // size, -(-part.stop // size)
        values = torch.cat([answer(group) for group in range(first, last)])
        own = values[part.start - first * size : part.stop - first * size].numpy()
        teacher_cache.write_part(work.root, work.spec, part, {next(iter(work.spec.arrays)): own})
        log(f"{answers} {part.part_id}: slots {part.start} to {part.stop} of {work.spec.n_slots}")
    return {"made": list(part_ids)}


def publish_cache(
    workspace: Workspace, variant: Variant, answers: Answers, inputs: Inputs, written: Sequence[Value]
) -> TaskResult:
    """Publish a cache as what training reads."""
    teacher = inputs[0]["fingerprint"]
    if workspace.profile.cache.mode == "online":
        value = {"mode": "online", "answers": answers, "cache": "", "fingerprint": fingerprint(["online", teacher])}
        return TaskResult(value, value["fingerprint"], 0, 0, {"mode": "online"})
    work = CacheWork(workspace, variant, answers, inputs)
    manifest = teacher_cache.publish(work.root, work.spec, work.parts(work.reader()))
    made = [part for step in written for part in step["made"]]
    size = sum(int(shard["n_bytes"]) for shard in manifest["shards"])
    arrays = {name: f"{array.encoding} {list(array.tail)}" for name, array in work.spec.arrays.items()}
    notes = {
        "slots": work.spec.n_slots,
        "bytes on disk": size,
        "bytes per slot": size / work.spec.n_slots,
        "arrays": str(arrays),
        "folder": work.root.url,
    }
    value = {"mode": "cached", "answers": answers, "cache": work.digest, "fingerprint": manifest["fingerprint"]}
    return TaskResult(value, manifest["fingerprint"], len(made), work.spec.n_parts - len(made), notes)
