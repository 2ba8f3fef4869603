"""The identity of a process across machines, containers and restarts of a machine.

What belongs here: naming a process uniquely, and finding whether it has ended. Not here: what follows from its end.
"""

import os
import socket
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from storage.base.errors import IntegrityError

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = Path("/proc/self/ns/pid")


@dataclass(frozen=True)
class Place:
    """The scope in which a process id is unique: one boot of one machine, and one namespace of process ids.

    Attributes:
        host: The machine's or the container's name.
        boot: Random number drawn when the machine started; empty where the system gives none.
        namespace: The namespace of process ids; each container has its own. Empty where the system gives none.
    """

    host: str
    boot: str
    namespace: str


@dataclass(frozen=True)
class Process:
    """One process, identified uniquely.

    Attributes:
        id: Its process id.
        born: Its start time, in the system's units; a later process of the same id has another. None if the process
            had ended before it was looked up.
        place: The scope of the id; None in a note that an earlier version wrote.
    """

    id: int
    born: str | None
    place: Place | None

    def __str__(self) -> str:
        return f"{self.id}" if self.place in (None, here()) else f"{self.id} on {self.place.host}"

    def gone(self, heard_s: float = 0.0) -> bool | None:
        """Return whether it has ended; None if nothing here can tell.

        A process of another machine or container cannot be judged from here. One of this host before the machine's last
        start has ended; one that was heard of since then is of another machine that bears the same name. One whose
        place is unknown is judged as if it were of here.

        Args:
            heard_s: When it last gave a sign of life, in seconds since the epoch; 0 if that is not known.
        """
        own = here()
        if self.place is not None and self.place != own:
            restarted = self.place.host == own.host and bool(self.place.boot) and self.place.boot != own.boot
            return True if restarted and heard_s < started_s() else None
        return self.born is None or birth(self.id) != self.born


@cache
def here() -> Place:
    """Return where this process runs."""
    try:
        boot = _BOOT.read_text().strip()
    except OSError:
        boot = ""
    try:
        namespace = str(_NAMESPACE.readlink())
    except OSError:
        namespace = ""
    return Place(socket.gethostname(), boot, namespace)


def started_s() -> float:
    """Return when this machine started, in seconds since the epoch; 0 where the system does not say."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return 0.0 if clock is None else time.time() - time.clock_gettime(clock)


def birth(process: int) -> str | None:
    """Return the start time of a running process; None if it has ended, even if it is still a zombie."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def this_process() -> Process:
    """Return the calling process."""
    return process_here(os.getpid())


def process_here(number: int) -> Process:
    """Return the process that has this id here now."""
    return Process(number, birth(number), here())


def process_note(process: Process) -> dict[str, object]:
    """Return a process as a plain value."""
    place = {} if process.place is None else asdict(process.place)
    return {"process": process.id, "born": process.born, **place}


def read_process(note: object) -> Process:
    """Read a note of a process, one without a place too.

    Raises:
        IntegrityError: If it names no process.
    """
    number = note.get("process") if isinstance(note, dict) else None
    if not isinstance(note, dict) or not isinstance(number, int):
        raise IntegrityError(f"expected the note of a process, found {note!r:.80}")
    born, host = note.get("born"), note.get("host")
    place = None if host is None else Place(str(host), str(note.get("boot", "")), str(note.get("namespace", "")))
    return Process(number, None if born is None else str(born), place)
