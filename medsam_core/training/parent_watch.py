"""The life of a trainer process. What belongs here: dying with the process that asked for the training.

Not here: handling of signals that ask a trainer to stop; its checkpoints make that unnecessary.

A trainer that outlives a killed run would go on holding the lock of its output and the accelerator.
"""

import ctypes
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

from medsam_core.training.errors import TrainingError

PARENT_VARIABLE = "MEDSAM_PARENT_PID"
"""Environment variable naming the process whose death ends the trainer, where it is not the direct parent."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

logger = logging.getLogger(__name__)


def require_parent(ancestor: int | None = None, *, interval_s: float = 1.0) -> None:
    """Tie this process to its parent, and to an ancestor further up: when either dies, this process is killed.

    On Linux the kernel kills this process the moment its parent dies. It does so too when the *thread* that started
    this process ends, so start a trainer from a thread that waits for it. Under `torchrun` the parent is torchrun's
    agent, which does not die with the process that started it; that process passes its own id on as `ancestor`.
    A daemon thread checks both every `interval_s`; on systems other than Linux it is the only watch.

    Args:
        ancestor: Process id to watch besides the parent; by default the environment variable `MEDSAM_PARENT_PID`,
            and nothing more than the parent where that is unset.
        interval_s: Seconds between two looks.

    Raises:
        TrainingError: If the parent or the ancestor is already gone.
    """
    parent = os.getppid()
    if ancestor is None and PARENT_VARIABLE in os.environ:
        ancestor = int(os.environ[PARENT_VARIABLE])
    if sys.platform == "linux":
        _ask_kernel_to_kill_with_parent()
    born = None if ancestor is None else _birth(ancestor)
    if not _parents_live(parent, ancestor, born):
        raise TrainingError(
            f"expected living processes {parent} (parent) and {ancestor} (ancestor), found that one has died; "
            "start the trainer from a process that waits for it"
        )
    watcher = threading.Thread(
        target=_watch, args=(parent, ancestor, born, interval_s), name="parent-watch", daemon=True
    )
    watcher.start()


def _ask_kernel_to_kill_with_parent() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl(PR_SET_PDEATHSIG) failed: {os.strerror(code)}")


def _watch(parent: int, ancestor: int | None, born: str | None, interval_s: float) -> None:
    while _parents_live(parent, ancestor, born):
        time.sleep(interval_s)
    logger.error("the process that asked for this training has died; ending")
    os.kill(os.getpid(), signal.SIGKILL)


def _parents_live(parent: int, ancestor: int | None, born: str | None) -> bool:
    if os.getppid() != parent:
        return False
    return ancestor is None or (born is not None and _birth(ancestor) == born)


def _birth(process: int) -> str | None:
    """Return what tells a process from a later one of the same id, or None when it is dead or a zombie."""
    try:
        os.kill(process, 0)
        if sys.platform != "linux":
            return "alive"
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except PermissionError:
        return "alive"
    except (ProcessLookupError, FileNotFoundError):
        return None
    state, start_time = fields[0], fields[19]  # proc(5): fields 3 and 22, counted from after the name
    return None if state in "ZX" else start_time
