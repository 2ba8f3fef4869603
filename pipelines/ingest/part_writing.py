"""Writing many parts of a slice store in several processes.

What belongs here: how many processes, their lives, their errors. Not here: what a part is (`storage.slices.writer`),
which parts a step gets (`pipelines.ingest.tasks`).
"""

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Final

from medsam_core.training.parent_watch import require_parent
from storage.base.blobs import Blobs
from storage.base.errors import BadSampleError, CaseChangedError
from storage.slices.manifest import SliceFragment
from storage.slices.planned import PartPlan, PlannedCase
from storage.slices.writer import write_part
from storage.sources.source import CASE_COPIES, Source

POOL_BYTES: Final = 128 * 2**20
"""Array bytes below which one process is done sooner than others have started."""


def case_bytes(case: PlannedCase) -> int:
    """Return the bytes of a case's stored arrays."""
    widths = {"imgs": 1, "gts_u8": 1, "gts_u16": 2}
    return case.depth * sum(widths[name] * size for name, size in case.elements().items())


def process_count(parts: Sequence[PartPlan], workers: int, memory_bytes: int) -> int:
    """Return how many processes write these parts.

    Args:
        parts: The parts.
        workers: Most processes.
        memory_bytes: Memory that cases may take in all processes together; one process may exceed it, for a single
            case that does.
    """
    sizes = [case_bytes(case) for part in parts for case in part.cases]
    if sum(sizes) < POOL_BYTES:
        return 1
    room = memory_bytes // (CASE_COPIES * max(sizes))
    return max(1, min(workers, len(parts), room))


@dataclass(frozen=True)
class LostCases:
    """A part that is not written, for some of its cases are no longer those that were planned."""

    part_id: str
    reasons: dict[str, str]
    """Case id -> why."""


def lost_cases(part: PartPlan, source: Source) -> LostCases | None:
    """Return which cases of a part are no longer those that were planned; None if all are."""
    reasons = {}
    for planned in part.cases:
        try:
            if source.read(planned.case_id).content_hash != planned.content_hash:
                reasons[planned.case_id] = "its file has changed since the scan"
        except BadSampleError as error:
            reasons[planned.case_id] = f"{error.code}: {error}"
    return LostCases(part.part_id, reasons) if reasons else None


def _write(root: Blobs, part: PartPlan, source: Source) -> SliceFragment | LostCases:
    """Write a part, or say which of its cases stand in the way; what was a passing fault is tried once more."""
    try:
        return write_part(root, part, source.read)
    except (BadSampleError, CaseChangedError):
        return lost_cases(part, source) or write_part(root, part, source.read)


def write_parts(
    root: Blobs, parts: Sequence[PartPlan], source: Source, processes: int
) -> Iterator[SliceFragment | LostCases]:
    """Write parts and yield each one's fragment as it is committed, or the cases for which it cannot be written.

    After an error no further part is begun; those at work are finished, and count.

    Args:
        root: Place of all stores.
        parts: Parts of the recorded plan.
        source: Where the cases are.
        processes: How many write; 1 means this one.

    Raises:
        StorageError: What stopped a part; errors as in `write_part`.
    """
    if processes == 1:
        for part in parts:
            yield _write(root, part, source)
        return
    # Spawned, for a process that has read a store through other libraries must not be forked, and so that the kernel
    # ends them with this process.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=require_parent) as pool:
        futures = [pool.submit(_write, root, part, source) for part in parts]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
