"""Naming a process so that another machine, container or boot does not take it for one of its own.

What belongs here: the identity of processes, and whether one is gone. Not here: what follows from its death.
"""

import os
import socket
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = Path("/proc/self/ns/pid")


@dataclass(frozen=True)
class Place:
    """Where an id names one process: a machine since it started, and there the processes that see each other.

    Attributes:
        host: The machine's or the container's name.
        boot: Random number drawn when the machine started; empty where the system gives none.
        namespace: Of process ids; each container has its own. Empty where the system gives none.
    """

    host: str
    boot: str
    namespace: str


@dataclass(frozen=True)
class Process:
    """One process, told from all others.

    Attributes:
        id: Its number.
        born: When it started, as the system counts; tells it from a later one of the same id. None: was gone already.
        place: Where the number means this process; None in a note of a version that did not say.
    """

    id: int
    born: str | None
    place: Place | None

    def __str__(self) -> str:
        return f"{self.id}" if self.place in (None, here()) else f"{self.id} on {self.place.host}"

    def gone(self) -> bool | None:
        """Return whether it has ended; None if nothing here can tell.

        A process of another machine or container cannot be judged from here. One of this host before the machine's last
        start has ended. One whose place is unknown is judged as if it were of here.
        """
        own = here()
        if self.place is not None and self.place != own:
            restarted = self.place.host == own.host and bool(self.place.boot) and self.place.boot != own.boot
            return True if restarted else None
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


def birth(process: int) -> str | None:
    """Return the start time of a living process; None for one that has ended, waited for or not."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def this_process() -> Process:
    """Return the process that asks."""
    return process_here(os.getpid())


def process_here(number: int) -> Process:
    """Return the process of this place that has this id now."""
    return Process(number, birth(number), here())


def process_note(process: Process) -> dict[str, object]:
    """Return what a note of a process holds."""
    place = {} if process.place is None else asdict(process.place)
    return {"process": process.id, "born": process.born, **place}


def read_process(note: dict[str, object]) -> Process:
    """Read a note of a process, one without a place too."""
    born, host = note.get("born"), note.get("host")
    place = None if host is None else Place(str(host), str(note.get("boot", "")), str(note.get("namespace", "")))
    return Process(int(str(note["process"])), None if born is None else str(born), place)
