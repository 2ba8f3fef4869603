"""Runs of one state folder take turns. What belongs here: waiting for the run that is at work, and saying so.

Not here: what a run does. Two runs at once would publish the same stores, train into the same folder and each make what
the other makes. The lock is the kernel's: it is freed when the process that executes a run dies, however it dies.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from storage.base.atomic import read_json, write_json
from storage.base.errors import BusyError
from storage.base.locks import exclusive_lock
from storage.base.processes import process_note, read_process, this_process


@contextmanager
def turn(state: Path, run_id: str, say: Callable[[str], None], *, interval_s: float = 1.0) -> Iterator[None]:
    """Hold a state folder for one run, waiting for the run that is at work in it.

    Args:
        state: Folder of a profile's state.
        run_id: Of the run that asks.
        say: Told once for each run that is waited for: which, and who executes it.
        interval_s: Seconds between two looks.
    """
    note = state / "runs" / "at_work.json"
    with ExitStack() as stack:
        told = ""
        with _interruptible():
            while True:
                try:
                    stack.enter_context(exclusive_lock(state / "run.lock", what=str(state)))
                    break
                except BusyError:
                    holder = _holder(note)
                if holder != told:
                    told = holder
                    say(f"{state}: {holder} is at work here; this run waits until it has ended")
                time.sleep(interval_s)
        write_json(note, {"run": run_id, **process_note(this_process())})
        yield


def _holder(note: Path) -> str:
    """Return which run is at work, as the last one that got in noted it."""
    if not note.is_file():
        return "another run"
    content = read_json(note)
    return f"run {content['run']} (process {read_process(content)})"


@contextmanager
def _interruptible() -> Iterator[None]:
    """End the block when the user or the page asks, which Dagster otherwise puts off until a step has ended."""
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
