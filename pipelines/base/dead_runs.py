"""Runs whose process has died. What belongs here: who executes a run, and freeing what a dead one still holds.

After `kill -9` a run stays STARTED in Dagster's storage and its pool slot stays taken. Each run therefore notes the
process that executes it, and the next run to start ends those whose process is gone. Trainers die with their parent by
themselves (`medsam_core.training.parent_watch`).
"""

import logging
import os
from pathlib import Path

import dagster as dg

from storage.base.atomic import read_json, write_json

logger = logging.getLogger(__name__)

_UNFINISHED = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.CANCELING]


def _born(process: int) -> str | None:
    """Return the start time of a living process, which tells it from a later one of the same id."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def alive(process: int) -> bool:
    """Return whether a process of this id lives; one that has ended and was not waited for does not."""
    return _born(process) is not None


def note_executor(folder: Path, run_id: str, *, in_process: bool) -> bool:
    """Note which process executes a run.

    Args:
        folder: Where runs keep their notes.
        run_id: Dagster's id of the run.
        in_process: True if this process executes the run itself, False if its parent does and this is a step's.

    Returns:
        True if this is the first note of the run.
    """
    path = folder / f"{run_id}.process.json"
    if path.exists():
        return False
    process = os.getpid() if in_process else os.getppid()
    write_json(path, {"process": process, "born": _born(process)})
    return True


def end_dead_runs(instance: dg.DagsterInstance, folder: Path, this_run: str) -> list[str]:
    """Mark as failed every unfinished run whose executing process is gone, and free its pool slots.

    Runs without a note, for example of another machine, are left alone.

    Returns:
        Their ids.
    """
    ended = []
    for run in instance.get_runs(dg.RunsFilter(statuses=_UNFINISHED)):
        note = folder / f"{run.run_id}.process.json"
        if run.run_id == this_run or not note.is_file():
            continue
        content = read_json(note)
        born = _born(int(content["process"]))
        if born is not None and born == content["born"]:
            continue
        message = f"process {content['process']}, which executed this run, is gone"
        instance.report_run_failed(run, message)
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        logger.warning("run %s ended: %s", run.run_id, message)
        ended.append(run.run_id)
    return ended
