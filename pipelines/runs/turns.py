"""One run at a time in a state folder. What belongs here: waiting for another run, and logging that.

Not here: the work of a run. Two concurrent runs would publish the same stores, train into the same folder and make the
same results twice. The kernel holds the lock and frees it when the process that executes the run ends for any reason.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from storage.base.atomic import read_json, write_json
from storage.base.errors import BusyError, IntegrityError
from storage.base.locks import exclusive_lock
from storage.base.processes import process_note, read_process, this_process


@contextmanager
def turn(state: Path, run_id: str, say: Callable[[str], None], *, interval_s: float = 1.0) -> Iterator[None]:
    """Hold the lock of a state folder for one run; wait while another run holds it.

    Args:
        state: Folder of a profile's state.
        run_id: Id of the run that waits.
        say: Called once for each run that holds the lock meanwhile, with a line that names it and its process.
        interval_s: Seconds between two attempts.
    """
    note = state / "runs" / "at_work.json"
    with ExitStack() as stack:
        logged = ""
        with _interruptible():
            while True:
                try:
                    stack.enter_context(exclusive_lock(state / "run.lock", what=str(state)))
                    break
                except BusyError:
                    holder = _holder(note)
                if holder != logged:
                    logged = holder
                    say(f"{state}: {holder} is at work here; this run waits until it has ended")
                time.sleep(interval_s)
        write_json(note, {"run": run_id, **process_note(this_process())})
        yield


def _holder(note: Path) -> str:
    """Return the name of the run that holds the lock, from the note that it wrote."""
    try:
        content = read_json(note)
        return f"run {content['run']} (process {read_process(content)})"
    except (OSError, IntegrityError, KeyError, TypeError):  # no note yet, or what is left of one
        return "another run"


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let a signal interrupt the block at once; Dagster otherwise delays it until a step has ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
