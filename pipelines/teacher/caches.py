"""The teacher's cached answers for a plan. What belongs here: what each slot's answer is made from, and computing it.

Not here: how answers are stored (`storage.answers.cache_writer`) or read in training (`pipelines.training.trainer`).

The fingerprint of a cache is made of the teacher, the kind of answer and the plan's settings, that of a part of its
slots and the content of their slices. So after a change of a slice only the parts that show it are made again.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from medsam_core.base.allocator import keep_freed_memory
from medsam_core.learning.questions import AnswerKind, Question
from medsam_core.planning.plan import Plan, plan_inputs
from pipelines.base.results import TaskResult
from pipelines.base.values import CacheMode, CacheRef, PartsMade, TeacherRef
from pipelines.base.workspace import Workspace
from pipelines.ingest.releases import stage_reader
from pipelines.teacher import cache_budget, cache_care
from pipelines.teacher.cache_user import CacheUser
from pipelines.training.plans import load_plan
from storage.answers import cache_locks, cache_plan, cache_writer, teacher_cache
from storage.answers.cache_plan import ArraySpec, CachePart, CacheSpec
from storage.answers.encodings import Floats
from storage.base.fingerprints import array_hash, combine, fingerprint
from storage.base.locks import exclusive_lock
from storage.base.references import ArtefactRef
from storage.releases.reader import ReleaseReader

if TYPE_CHECKING:
    from medsam_core.imaging.rendering import Microbatch

Inputs = tuple[TeacherRef, ArtefactRef, ArtefactRef]
"""Values of the teacher, the plan and the release."""

ANSWER_VERSION = 1
"""Raised by hand whenever the same slot gets another answer: preprocessing, rendering or the teacher's code changed."""


def mode_of(workspace: Workspace, user: CacheUser) -> Literal["cached", "online", "prefer_cached", "off"]:
    """Return how a user gets its answers; `off` where the profile leaves its stage out."""
    profile = workspace.profile
    return "off" if user.settings(profile) is None else profile.cache.mode


class CacheWork:
    """A cache as planned: its place, its parts, and what computes them."""

    def __init__(self, workspace: Workspace, user: CacheUser, inputs: Inputs) -> None:
        self.workspace = workspace
        self.teacher, plan, self.release = inputs
        stage, profile = user.stage, workspace.profile
        self.question: Question = stage.question
        self.answers = self.question.kind
        config = user.config(profile)
        self.plan: Plan = load_plan(workspace, plan, config, stage)
        self._plan_folder = workspace.artefacts.get(plan).path
        made_from = {
            "answers": self.answers,
            "version": ANSWER_VERSION,
            "teacher": self.teacher.fingerprint,
            "plan": plan_inputs(config, stage, profile.student.image_size, profile.seeds.plan),
            "n_slots": self.plan.n_plan_slots,
        }
        self.spec = CacheSpec(
            arrays={self.question.array: self._array_spec(stage.n_prompts(config))},
            n_slots=self.plan.n_plan_slots,
            slots_per_chunk=profile.cache.slots_per_chunk,
            slots_per_shard=profile.cache.slots_per_shard,
            shards_per_part=profile.cache.shards_per_part,
            made_from=made_from,
        )
        self.digest = fingerprint(self.spec.header())
        self.root = workspace.cache_root(self.answers, self.digest)

    def _array_spec(self, n_prompts: int) -> ArraySpec:
        profile = self.workspace.profile
        encodings = {"features": profile.cache.encoding, "probabilities": "probability_uint8"}
        shape = self.question.shape(profile.teacher.geometry, n_prompts)
        return ArraySpec(shape, encodings[self.question.values])

    @property
    def name(self) -> str:
        """The asset's name."""
        return f"teacher_{self.answers}"

    @property
    def coverage(self) -> pd.DataFrame:
        """Drawable and shown slices by modality, as the plan's artefact states them."""
        return pd.read_csv(self._plan_folder / "coverage.csv")

    def part_lock(self, part: CachePart) -> Path:
        """Return the file whose lock the one writer of a part holds."""
        caches = self.workspace.cache_folder(self.answers)
        return caches / f"{self.digest[:16]}.locks" / part.part_id

    def reader(self) -> ReleaseReader:
        """Return a reader of the slices that the plan draws from."""
        return stage_reader(self.workspace, self.release, self.plan.stage)

    def parts(self, reader: ReleaseReader) -> list[CachePart]:
        """Return the cache's parts, each with the fingerprint of what its slots show."""
        names, codes = reader.columns.names("content_hash"), reader.columns.codes("content_hash")
        depth = reader.columns.numbers("z")
        slots = self.plan.slots.reshape(-1)
        microbatches = self.plan.microbatches.reshape(-1)
        size = self.plan.config.microbatch_size
        digests = []
        for start in range(0, self.spec.n_slots, self.spec.slots_per_part):
            stop = min(start + self.spec.slots_per_part, self.spec.n_slots)
            # Mixing reaches over a whole microbatch, so a part depends on every microbatch it touches.
            first, last = start // size, -(-stop // size)
            shown = np.array(slots[first * size : last * size])
            rows = shown["row"].copy()
            # The row's number is an address; what it shows is its case's content and z.
            shown["row"] = depth[rows]
            draws = array_hash({"slots": shown, "groups": np.array(microbatches[first:last])})
            digests.append(combine([draws, *names[codes[rows]]]))
        return cache_plan.plan_cache_parts(self.spec, digests)


class Answerer:
    """Lets the teacher answer whole microbatches of a plan, on the profile's device."""

    def __init__(self, work: CacheWork, reader: ReleaseReader) -> None:
        from medsam_core.models.checkpoints import load_model
        from medsam_core.training.precision import Precision, mixed_name
        from pipelines.base.devices import choose_device

        keep_freed_memory()
        profile = work.workspace.profile
        self._work, self._reader = work, reader
        self._device = choose_device(profile)
        mixed = profile.training.mixed_precision and self._device.type == "cuda"
        self._precision = Precision(self._device, mixed_name(self._device) if mixed else "float32")
        path = work.workspace.artefacts.get(work.teacher).path / "model.safetensors"
        self._model = load_model(path).to(self._device)

    def _rendered(self, number: int) -> "Microbatch":
        """Return a microbatch of the plan as the student will see it; called ahead, in a thread."""
        from medsam_core.imaging.rendering import render_microbatch

        plan = self._work.plan
        slots, record, _ = plan.microbatch_slots(*divmod(number, plan.microbatches_per_epoch))
        return render_microbatch(slots, record, self._reader, self._model.geometry)

    def _answered(self, batch: "Microbatch") -> Floats:
        """Return the answers to a microbatch, (B, ...) float32."""
        import torch

        with torch.inference_mode(), self._precision.teacher_autocast():
            images, boxes = batch.images.to(self._device), batch.boxes.to(self._device)
            answers: Floats = self._work.question.ask(self._model, images, boxes).cpu().numpy()
            return answers

    def slots(self, start: int, stop: int) -> Floats:
        """Return the answers to slots of the plan, always by whole microbatches: they depend on nothing else."""
        from medsam_core.training.prefetch import prefetched

        size = self._work.plan.config.microbatch_size
        first, last = start // size, -(-stop // size)
        values = np.concatenate([self._answered(batch) for batch in prefetched(self._rendered, range(first, last))])
        return values[start - first * size : stop - first * size]


def plan_cache(workspace: Workspace, user: CacheUser, inputs: Inputs, log: Callable[[str], None]) -> list[list[str]]:
    """Return the ids of the parts that are missing, batched into steps; none where nothing is computed ahead.

    Raises:
        BudgetError: If the cache would take more than the profile or the disk allows.
    """
    mode = mode_of(workspace, user)
    if mode != "cached":
        log(f"{user.stage.section}: cache.mode is {mode}; nothing is computed ahead")
        return []
    work, answers = CacheWork(workspace, user, inputs), user.stage.question.kind
    reader = work.reader()
    parts = work.parts(reader)
    missing = cache_writer.missing_parts(work.root, work.spec, parts)
    log(f"{answers}: {len(missing)} of {len(parts)} parts to make, {work.spec.n_slots} slots in all")
    if missing:
        microbatch = work.plan.config.microbatch_size
        cost = cache_budget.measure(workspace, work.spec, work.digest, microbatch, lambda: Answerer(work, reader).slots)
        log(f"{answers}: {cost.bytes_per_slot:.0f} bytes and {cost.seconds_per_slot:.3g} s a slot")
        slots = sum(part.stop - part.start for part in missing)
        cache_budget.require_room(workspace, work.plan, cost, slots, work.root.url)
        cache_care.pin_planned(workspace, answers, user.name, work.digest)
    ids = [part.part_id for part in missing]
    size = workspace.profile.cache.parts_per_step
    return [ids[start : start + size] for start in range(0, len(ids), size)]


def write_cache_parts(
    workspace: Workspace, user: CacheUser, inputs: Inputs, part_ids: Sequence[str], log: Callable[[str], None]
) -> PartsMade:
    """Let the teacher answer the slots of some parts; each is published whole or not at all.

    Raises:
        BusyError: If another run is at work on one of these parts.
    """
    work, answers = CacheWork(workspace, user, inputs), user.stage.question.kind
    reader = work.reader()
    answerer = Answerer(work, reader)
    wanted, made = set(part_ids), []
    with cache_locks.writing_access(work.root):
        for part in (part for part in work.parts(reader) if part.part_id in wanted):
            with exclusive_lock(work.part_lock(part), what=f"{work.name} {part.part_id}"):
                if not cache_writer.missing_parts(work.root, work.spec, [part]):
                    log(f"{answers} {part.part_id}: made by another run meanwhile")
                    continue
                own = answerer.slots(part.start, part.stop)
                cache_writer.write_part(work.root, work.spec, part, {work.question.array: own})
            made.append(part.part_id)
            log(f"{answers} {part.part_id}: slots {part.start} to {part.stop} of {work.spec.n_slots}")
    return PartsMade(tuple(made))


def publish_cache(
    workspace: Workspace, user: CacheUser, inputs: Inputs, written: Sequence[PartsMade]
) -> TaskResult[CacheRef]:
    """Publish a cache as what training reads, and note that this asset uses it."""
    mode, answers = mode_of(workspace, user), user.stage.question.kind
    if mode in ("online", "off"):
        return _not_cached(workspace, user, mode, inputs, {"mode": mode})
    work = CacheWork(workspace, user, inputs)
    parts = work.parts(work.reader())
    missing = cache_writer.missing_parts(work.root, work.spec, parts)
    if mode == "prefer_cached" and missing:
        why = f"{len(missing)} of {len(parts)} parts are missing, so the teacher is asked online"
        return _not_cached(workspace, user, "online", inputs, {"mode": mode, "cache": why})
    manifest = cache_writer.publish(work.root, work.spec, parts)
    made = [part for step in written for part in step.made]
    size = manifest.n_bytes()
    arrays = {name: f"{array.encoding} {list(array.tail)}" for name, array in work.spec.arrays.items()}
    notes = {
        "slots": work.spec.n_slots,
        "bytes on disk": size,
        "bytes per slot": round(size / work.spec.n_slots, 1),
        "arrays": str(arrays),
        "error": "; ".join(array.codec().max_error for array in work.spec.arrays.values()),
        "folder": work.root.url,
        "slices by modality": work.coverage,
        **cache_budget.notes(workspace, work.plan, work.spec, work.digest),
    }
    value = _value("cached", answers, inputs, work.digest, manifest.fingerprint)
    cache_care.pin(workspace, answers, user.name, work.digest)
    return TaskResult(value, manifest.fingerprint, len(made), work.spec.n_parts - len(made), notes)


def _not_cached(
    workspace: Workspace, user: CacheUser, mode: Literal["online", "off"], inputs: Inputs, notes: dict[str, str]
) -> TaskResult[CacheRef]:
    answers = user.stage.question.kind
    digest = fingerprint([mode, inputs[0].fingerprint])
    cache_care.pin(workspace, answers, user.name, None)
    return TaskResult(_value(mode, answers, inputs, "", digest), digest, 0, 0, notes)


def _value(mode: CacheMode, answers: AnswerKind, inputs: Inputs, cache: str, digest: str) -> CacheRef:
    """Return what travels to training, with what the answers belong to: a plan covers the training split."""
    teacher, plan, _ = (value.fingerprint for value in inputs)
    return CacheRef(mode, answers, cache, digest, teacher=teacher, plan=plan)


def check_answers(
    workspace: Workspace, user: CacheUser, inputs: Inputs, count: int, seed: int | None = None
) -> pd.DataFrame:
    """Compute the answers of some slots again and compare them with the published cache.

    Args:
        workspace: Where everything lies.
        user: Whose plan.
        inputs: Values of teacher, plan and release.
        count: How many slots, drawn at random.
        seed: Of the draw; None: another draw each time.

    Returns:
        slot, error, allowed; no row where nothing is cached. The error is the question's.

    Raises:
        StorageError: If the cache is not published.
        FingerprintMismatchError: If it was made from something else.
    """
    columns = ["slot", "error", "allowed"]
    if mode_of(workspace, user) in ("online", "off"):
        return pd.DataFrame(columns=columns)
    work = CacheWork(workspace, user, inputs)
    reader = work.reader()
    expected = combine(part.fingerprint for part in work.parts(reader))
    with cache_locks.reading_access(work.root):
        cache = teacher_cache.TeacherCache(work.root, work.spec.made_from, fingerprint=expected)
        answerer = Answerer(work, reader)
        chosen = np.random.default_rng(seed).choice(len(cache), min(count, len(cache)), replace=False)
        name, question = work.question.array, work.question
        rows = []
        for slot in sorted(chosen.tolist()):
            again, stored = answerer.slots(slot, slot + 1)[0], cache.read(name, slot, slot + 1)[0]
            rows.append((slot, question.error(again, stored), question.allowed_error))
    return pd.DataFrame(rows, columns=columns)
