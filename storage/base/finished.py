"""`done.json`, which marks an artefact as finished, and `files.json`, which lists its files with their hashes.

What belongs here: these two files, comparing a folder with them. Not here: finding and making artefacts
(`storage.base.artefacts`), removing what is damaged (`storage.base.clearing`).

`files.json` lists the files with sizes and hashes. `done.json` is written last; it holds the maker's facts and the hash
of `files.json`. Both are sealed. An earlier version wrote only the facts, into `done.json`, and recorded no hashes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

from storage.base.atomic import PARTIAL_SUFFIX, parse_json, read_json, write_bytes
from storage.base.blobs import JsonObject, seal, unseal
from storage.base.errors import IntegrityError
from storage.base.file_records import NO_FILE, FileRecord, differing_files, sizes_below

DONE: Final = "done.json"
FILES: Final = "files.json"
MADE_FROM: Final = "made_from.json"

FORMAT: Final = 2
"""Raised by hand whenever the format of `done.json` or `files.json` changes; version 1 had only the facts."""

SMALL_BYTES: Final = 2**20
"""Files up to this size that lie in the folder itself are hashed whenever it is reused; others once, and again after
they were touched, so that reuse takes milliseconds however many gigabytes lie there."""

Hashed = Callable[[str, FileRecord], bool]
"""Decides whether the hash of a file is compared as well as its size."""

OWN: Final = (DONE, FILES)
_REMEDY: Final = "it is made again"
_PASSING: Final = (f"*{PARTIAL_SUFFIX}", "*.lock")
"""Temporary files and locks, which are no part of the result."""


@dataclass(frozen=True)
class Finished:
    """The content of `done.json` and `files.json`.

    Attributes:
        info: The maker's facts.
        files: Path -> record of every file; None if an earlier version made the artefact and recorded none.
    """

    info: JsonObject
    files: dict[str, FileRecord] | None

    def damages(self, folder: Path, hashed: Hashed) -> dict[str, str]:
        """Return path -> problem, for every file that differs from its record.

        Args:
            folder: The folder.
            hashed: Decides for each file whether its hash is compared as well as its size.
        """
        return {} if self.files is None else differing_files(folder, self.files, hashed)


def is_small(name: str, record: FileRecord) -> bool:
    """Return whether the hash of a file is compared before its folder is reused."""
    return record.n_bytes <= SMALL_BYTES and "/" not in name


def always(_name: str, _record: FileRecord) -> bool:
    """Return True: the hash of every file is compared."""
    return True


def lasting_files(folder: Path) -> dict[str, int]:
    """Return path -> bytes of what lies in a folder, but for the two files of its own and what comes and goes."""
    sizes = sizes_below(folder)
    kept = sorted(name for name in sizes.keys() - set(OWN) if not any(fnmatch(name, pattern) for pattern in _PASSING))
    return {name: sizes[name] for name in kept}


def listed_names(folder: Path) -> list[str]:
    """Return the paths of the files that belong into `files.json`."""
    return [name for name, n_bytes in lasting_files(folder).items() if n_bytes != NO_FILE]


def write_finished(folder: Path, info: Mapping[str, object], inseparable: Sequence[str] = ()) -> None:
    """Record sizes and hashes of the files in a folder, then mark the folder as finished.

    Args:
        folder: The artefact's folder.
        info: The maker's facts.
        inseparable: Patterns of files that are made only together with all others.
    """
    records = {name: vars(FileRecord.of_file(folder / name)) for name in listed_names(folder)}
    listing = seal({"format": FORMAT, "files": records, "inseparable": list(inseparable)})
    done = seal({"format": FORMAT, "info": dict(info), "files": vars(FileRecord.of(listing))})
    write_bytes(folder / FILES, listing)
    write_bytes(folder / DONE, done)


def read_finished(folder: Path) -> Finished:
    """Read `done.json` and `files.json` of a folder.

    Raises:
        FileNotFoundError: If the folder is not finished.
        IntegrityError: If `done.json` is altered, or `files.json` is altered or missing.
    """
    if not (folder / DONE).is_file():
        raise FileNotFoundError(f"expected {folder / DONE}, found no file")
    data = (folder / DONE).read_bytes()
    listing = (folder / FILES).read_bytes() if (folder / FILES).is_file() else None
    value = parse_json(data, str(folder / DONE))
    if not isinstance(value, dict):
        raise IntegrityError(f"{folder / DONE}: expected an object, found {type(value).__name__}")
    if listing is None and not {"format", "info", "files", "sha256"} <= value.keys():
        return Finished(value, None)
    done = unseal(data, str(folder / DONE), _REMEDY)
    if listing is None or FileRecord.of(listing) != FileRecord(**done["files"]):
        raise IntegrityError(f"{folder / FILES}: expected the list whose hash {DONE} records, found none or another")
    return Finished(done["info"], _records(parse_json(listing, str(folder / FILES))))


def read_origin(folder: Path) -> JsonObject:
    """Return what a folder says that it was made from.

    Raises:
        FileNotFoundError: If it does not say.
        IntegrityError: If what it says cannot be read.
    """
    path = folder / MADE_FROM
    if not path.is_file():
        raise FileNotFoundError("expected what it was made from, found no file")
    origin = read_json(path)
    if not isinstance(origin, dict):
        raise IntegrityError(f"{path}: expected an object, found {type(origin).__name__}")
    return origin


def _records(listing: JsonObject) -> dict[str, FileRecord]:
    return {name: FileRecord(**record) for name, record in listing["files"].items()}


def read_listing(folder: Path) -> tuple[dict[str, FileRecord], list[str]]:
    """Return the records and the inseparable patterns from `files.json`; `done.json` may be damaged.

    Both are empty if `files.json` is missing or altered.
    """
    path = folder / FILES
    if not path.is_file():
        return {}, []
    try:
        listing = unseal(path.read_bytes(), str(path), _REMEDY)
    except IntegrityError:
        return {}, []
    return _records(listing), listing["inseparable"]
