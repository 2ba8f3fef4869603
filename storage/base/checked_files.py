"""Which files of a folder were hashed and found whole, and how the file system described them then.

What belongs here: this memory, kept beside the folder. Not here: what vouches for the files (`storage.base.finished`).

Hashing gigabytes whenever a result is looked at would take minutes. A file that is written to, replaced or restored
gets another time of change from the kernel, so it is hashed when it is first looked at, and again once it was touched.
The memory vouches for nothing: without it everything is hashed once more.
"""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from storage.base.atomic import read_json, write_json
from storage.base.errors import IntegrityError


class CheckedFiles:
    """Remembers the files of one folder that were found whole."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder.with_name(f"{folder.name}.checked.json")
        self._known: dict[str, list[int]] = {}
        self._met: dict[str, list[int]] = {}
        with suppress(OSError, IntegrityError):
            known = read_json(self._file)
            self._known = known if isinstance(known, dict) else {}

    def unknown(self, name: str) -> bool:
        """Return whether a file is to be hashed: it is no longer, or was never, the file that was found whole."""
        self._met[name] = _description(self._folder / name)
        return self._met[name] != self._known.get(name)

    def remember(self, names: Iterable[str]) -> None:
        """Note that these files are whole, as they were when `unknown` was asked about them."""
        met = {name: self._met[name] for name in names if name in self._met}
        if met != self._known:
            # State that this user may only read is hashed each time.
            with suppress(OSError):
                write_json(self._file, met)


def _description(path: Path) -> list[int]:
    """Return what tells a file from itself after any writing: its inode, size, times of content and change."""
    found = path.stat()
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
