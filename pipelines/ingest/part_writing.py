"""Writing many parts of a slice store in several processes.

What belongs here: how many processes, their lives, their errors. Not here: what a part is (`storage.slices.writer`),
which parts a step gets (`pipelines.ingest.tasks`).
"""

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Final

from medsam_core.training.parent_watch import require_parent
from storage.base.blobs import Blobs
from storage.slices.manifest import SliceFragment
from storage.slices.planned import PartPlan, PlannedCase
from storage.slices.writer import LoadCase, write_part
from storage.sources.source import CASE_COPIES

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


def write_parts(root: Blobs, parts: Sequence[PartPlan], load: LoadCase, processes: int) -> Iterator[SliceFragment]:
    """Write parts and yield each one's fragment as it is committed.

    After an error no further part is begun; those at work are finished, and count.

    Args:
        root: Place of all stores.
        parts: Parts of the recorded plan.
        load: Loads a case, such as a source's `read`; may be pickled.
        processes: How many write; 1 means this one.

    Raises:
        StorageError: What stopped a part; errors as in `write_part`.
    """
    if processes == 1:
        for part in parts:
            yield write_part(root, part, load)
        return
    # Spawned, for a process that has read a store through other libraries must not be forked, and so that the kernel
    # ends them with this process.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=require_parent) as pool:
        futures = [pool.submit(write_part, root, part, load) for part in parts]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
