"""Runs whose process has died. What belongs here: recording the process of a run, and ending dead runs.

After `kill -9` a run stays STARTED in Dagster's storage and keeps its pool slot. Therefore each run records the process
that executes it, and the next run to start ends the runs whose process is gone. A trainer ends by itself when its
parent dies (`medsam_core.training.parent_watch`). Runs of another machine or container are not ended from here.
"""

import logging
import os
import time
from pathlib import Path

import dagster as dg

from storage.base.atomic import read_json, write_json
from storage.base.errors import IntegrityError
from storage.base.processes import Process, birth, process_here, process_note, read_process

logger = logging.getLogger(__name__)

QUIET_S = 3600.0
"""A run whose note names no machine counts as dead only after it has logged nothing for this time."""

_UNFINISHED = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.CANCELING]


def alive(process: int) -> bool:
    """Return whether a process of this id is running here; a zombie is not."""
    return birth(process) is not None


def note_executor(folder: Path, run_id: str, *, in_process: bool) -> bool:
    """Note which process executes a run.

    Args:
        folder: Folder of the notes.
        run_id: Dagster's id of the run.
        in_process: True if this process executes the run; False if it executes a step and its parent executes the run.

    Returns:
        True if this is the first note of the run.
    """
    path = folder / f"{run_id}.process.json"
    if path.exists():
        return False
    write_json(path, process_note(process_here(os.getpid() if in_process else os.getppid())))
    return True


def _seems_gone(instance: dg.DagsterInstance, run_id: str, process: Process) -> bool:
    """Return whether the process of a run has ended; False if that cannot be found from here."""
    last = instance.get_records_for_run(run_id, limit=1, ascending=False).records
    heard_s = last[0].timestamp if last else 0.0
    gone = process.gone(heard_s)
    if gone is None:
        logger.info(
            "run %s: process %s is not visible from here; the run is kept (if it is dead, end it on Dagster's page)",
            run_id,
            process,
        )
    if not gone or process.place is not None:
        return bool(gone)
    # An earlier version wrote the note without a machine; a run on another machine would still log events.
    return time.time() - heard_s > QUIET_S


def end_dead_runs(instance: dg.DagsterInstance, folder: Path, this_run: str) -> list[str]:
    """Mark as failed every unfinished run whose executing process is gone, and free its pool slots.

    Runs without a readable note, and runs of another machine, container or namespace of process ids, are not changed.

    Returns:
        The ids of the ended runs.
    """
    ended = []
    for run in instance.get_runs(dg.RunsFilter(statuses=_UNFINISHED)):
        note = folder / f"{run.run_id}.process.json"
        if run.run_id == this_run or not note.is_file():
            continue
        try:
            process = read_process(read_json(note))
        except IntegrityError as error:
            logger.warning(
                "%s does not say who executes run %s, left alone (if it has died, end it on Dagster's page): %s",
                note,
                run.run_id,
                error,
            )
            continue
        if not _seems_gone(instance, run.run_id, process):
            continue
        message = f"process {process}, which executed this run, is gone"
        instance.report_run_failed(run, message)
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        logger.warning("run %s ended: %s", run.run_id, message)
        ended.append(run.run_id)
    return ended
