"""What a teacher cache costs before it is made. What belongs here: the probe, the estimate, the refusal.

Not here: making caches (`pipelines.teacher.caches`).
"""

import math
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from medsam_core.planning.plan import Plan
from pipelines.base.workspace import Workspace
from storage.answers import cache_plan, cache_writer, teacher_cache
from storage.answers.cache_plan import CacheSpec
from storage.answers.encodings import Floats
from storage.base.blobs import LocalBlobs

PROBE_SLOTS = 8
"""Slots that are answered at least, in whole microbatches, to learn what one costs."""

WARM_UP_S = 10.0
"""A first answer that took longer than this is not repeated: what a device does once is then a small part of it."""

_PROBE_VERSION = 2


class BudgetError(RuntimeError):
    """A cache would not fit; the message says what it needs, what there is, and which settings would fit."""


@dataclass(frozen=True)
class CacheCost:
    """What a slot costs, as measured.

    Attributes:
        bytes_per_slot: On disk, with scales, indexes and checksums.
        seconds_per_slot: Wall time of the teacher, and of what rendering it has to wait for, on the profile's device.
        read_seconds_per_slot: Wall time of reading and decoding, from the page cache.
    """

    bytes_per_slot: float
    seconds_per_slot: float
    read_seconds_per_slot: float

    def break_even_trainings(self, plan_epochs: int, epochs: int) -> float:
        """Return how many trainings of `epochs` epochs must use a cache of `plan_epochs` before it saves time."""
        saved = epochs * (self.seconds_per_slot - self.read_seconds_per_slot)
        return plan_epochs * self.seconds_per_slot / saved if saved > 0 else math.inf


def _made_from(workspace: Workspace, digest: str) -> dict[str, object]:
    training = workspace.profile.training
    return {
        "cache": digest,
        "device": training.device,
        "mixed_precision": training.mixed_precision,
        "version": _PROBE_VERSION,
    }


def measure(
    workspace: Workspace,
    spec: CacheSpec,
    digest: str,
    microbatch_size: int,
    load: Callable[[], Callable[[int, int], Floats]],
) -> CacheCost:
    """Answer a few slots, store them aside, and return what one costs; measured once for each cache.

    Args:
        workspace: Where the measurement is kept.
        spec: The cache.
        digest: Its fingerprint.
        microbatch_size: Slots that the teacher is asked about at once.
        load: Loads the teacher; what it returns is called with a first and a stop slot and returns their answers.
    """

    def build(_folder: Path) -> dict[str, object]:
        count = min(-(-PROBE_SLOTS // microbatch_size) * microbatch_size, spec.n_slots)
        answer = load()
        for _ in range(2):
            started = time.perf_counter()
            values = answer(0, count)
            seconds = time.perf_counter() - started
            if seconds > WARM_UP_S:
                break
        size, read_seconds = _stored(spec, values)
        return asdict(CacheCost(size, seconds / count, read_seconds))

    return CacheCost(**workspace.artefacts.make("cache_probe", _made_from(workspace, digest), build).info)


def _stored(spec: CacheSpec, values: Floats) -> tuple[float, float]:
    """Return the bytes of a slot on disk and the seconds of reading it, from a cache of these values."""
    shard = -(-len(values) // spec.slots_per_chunk) * spec.slots_per_chunk
    probe = replace(spec, n_slots=len(values), slots_per_shard=shard, shards_per_part=1)
    parts = cache_plan.plan_cache_parts(probe, ["probe"])
    name = next(iter(spec.arrays))
    with tempfile.TemporaryDirectory() as folder:
        root = LocalBlobs(Path(folder))
        cache_writer.write_part(root, probe, parts[0], {name: values})
        manifest = cache_writer.publish(root, probe, parts)
        size = manifest.n_bytes()
        cache = teacher_cache.TeacherCache(root)
        cache.read(name, 0, 1)
        started = time.perf_counter()
        cache.read(name, 0, len(cache))
        return size / len(values), (time.perf_counter() - started) / len(values)


def require_room(workspace: Workspace, plan: Plan, cost: CacheCost, missing_slots: int, place: str) -> None:
    """Refuse a cache that is larger than the profile allows, or whose missing slots the disk cannot take.

    Raises:
        BudgetError: If it does not fit.
    """
    limit = workspace.profile.cache.max_bytes
    total, missing = cost.bytes_per_slot * plan.n_plan_slots, cost.bytes_per_slot * missing_slots
    free = _free_bytes(workspace)
    # With other settings it is another cache, which takes over no part of this one.
    room = min(free, math.inf if limit is None else limit)
    problems, elsewhere = [], []
    if limit is not None and total > limit:
        problems.append(f"cache.max_bytes allows {_size(limit)}")
        elsewhere.append("a larger cache.max_bytes")
    if missing > free:
        problems.append(f"the disk of {place} has {_size(free)} free and {_size(missing)} are missing")
        elsewhere.append("MEDSAM_HOME on a larger disk")
    if problems:
        fitting = "; ".join([*_smaller(workspace, plan, cost, room), *elsewhere, "cache.mode online"])
        raise BudgetError(
            f"teacher cache for {plan.stage.section}: {plan.n_plan_slots} slots of {_size(cost.bytes_per_slot)} need "
            f"{_size(total)}, but {' and '.join(problems)}; what would fit: {fitting}"
        )


def _smaller(workspace: Workspace, plan: Plan, cost: CacheCost, room: float) -> list[str]:
    """Return the settings by which a cache would take no more than `room` bytes."""
    stage, slots = plan.stage, int(room // cost.bytes_per_slot)
    epochs, unit = slots // plan.slots_per_epoch, plan.config.microbatch_size * plan.config.microbatches_per_step
    found = []
    if epochs:
        found.append(f"{stage.section}.cached_epochs {epochs} (now {plan.config.plan_epochs})")
    elif slots >= unit:
        found.append(f"{stage.section}.cached_epochs 1 with {stage.section}.epoch_slots {slots // unit * unit}")
    if stage.question.values == "features" and workspace.profile.cache.encoding == "float16":
        found.append("cache.encoding int8_per_channel, which takes less than half the room")
    return found


def notes(workspace: Workspace, plan: Plan, spec: CacheSpec, digest: str) -> dict[str, object]:
    """Return the estimate of a cache that was measured, for the page; nothing if it was not."""
    probe = workspace.artefacts.find("cache_probe", _made_from(workspace, digest))
    if probe is None:
        return {}
    cost = CacheCost(**probe.info)
    trainings = cost.break_even_trainings(plan.config.plan_epochs, plan.config.epochs)
    pays = f"from training {max(1, math.ceil(trainings))} on" if math.isfinite(trainings) else "never"
    return {
        "estimated bytes": int(cost.bytes_per_slot * spec.n_slots),
        "estimated hours": float(f"{cost.seconds_per_slot * spec.n_slots / 3600:.3g}"),
        "free bytes": _free_bytes(workspace),
        "pays": f"{pays}: {plan.config.plan_epochs} epochs are answered, {plan.config.epochs} are trained on, "
        f"break-even after {trainings:.2f} trainings",
    }


def _free_bytes(workspace: Workspace) -> int:
    folder = workspace.settings.state
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _size(n_bytes: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.4g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.4g} TB"
