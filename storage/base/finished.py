"""What says that an artefact is finished, and what vouches for its files: `done.json` and `files.json`.

What belongs here: these two files, comparing a folder with them. Not here: finding and making artefacts
(`storage.base.artefacts`).

`files.json` lists the files with sizes and hashes, `done.json` is written last, with the maker's facts and the hash of
that list; both are sealed. An artefact of an earlier version has a `done.json` of facts alone: nothing vouches for it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

from storage.base.atomic import PARTIAL_SUFFIX, parse_json, write_bytes
from storage.base.blobs import JsonObject, seal, unseal
from storage.base.errors import IntegrityError
from storage.base.file_records import FileRecord, differing_files, sizes_below

DONE: Final = "done.json"
FILES: Final = "files.json"
MADE_FROM: Final = "made_from.json"

FORMAT: Final = 2
"""Raised by hand whenever `done.json` or `files.json` say something else; 1 was facts alone."""

SMALL_BYTES: Final = 2**20
"""Files up to this size that lie in the folder itself are hashed whenever it is reused; of others the size is compared,
so that reuse takes milliseconds however many gigabytes lie there."""

Hashed = Callable[[str, FileRecord], bool]
"""Says of a file whether its hash is compared, besides its size."""

_OWN: Final = (DONE, FILES)
_REMEDY: Final = "it is made again"
_PASSING: Final = (f"*{PARTIAL_SUFFIX}", "*.lock")
"""Files that come and go; nothing is kept in them."""


@dataclass(frozen=True)
class Finished:
    """What a finished folder says of itself.

    Attributes:
        info: The maker's facts.
        files: Path -> record of every file; None where an earlier version kept none.
    """

    info: JsonObject
    files: dict[str, FileRecord] | None

    def damages(self, folder: Path, hashed: Hashed) -> dict[str, str]:
        """Return path -> problem of the files that are not as they were made.

        Args:
            folder: The folder.
            hashed: Which files are read, rather than only measured.
        """
        return {} if self.files is None else differing_files(folder, self.files, hashed)


def is_small(name: str, record: FileRecord) -> bool:
    """Return whether a file is hashed whenever its folder is reused."""
    return record.n_bytes <= SMALL_BYTES and "/" not in name


def always(_name: str, _record: FileRecord) -> bool:
    """Return that a file is hashed."""
    return True


def listed_names(folder: Path) -> list[str]:
    """Return the paths of the files that a list has to name."""
    names = sorted(set(sizes_below(folder)) - set(_OWN))
    return [name for name in names if not any(fnmatch(name, pattern) for pattern in _PASSING)]


def write_finished(folder: Path, info: Mapping[str, object], inseparable: Sequence[str] = ()) -> None:
    """Vouch for the files that lie in a folder now, and say that it is finished.

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
    """Return what a finished folder says of itself.

    Raises:
        FileNotFoundError: If it is not finished.
        IntegrityError: If one of the two files is altered or gone.
    """
    data = (folder / DONE).read_bytes()
    listing = (folder / FILES).read_bytes() if (folder / FILES).is_file() else None
    value = parse_json(data, str(folder / DONE))
    if listing is None and not (isinstance(value, dict) and {"format", "info", "files", "sha256"} <= value.keys()):
        return Finished(value, None)
    done = unseal(data, str(folder / DONE), _REMEDY)
    if listing is None or FileRecord.of(listing) != FileRecord(**done["files"]):
        raise IntegrityError(f"{folder / FILES}: expected the list that {DONE} vouches for, found none or another")
    return Finished(done["info"], _records(parse_json(listing, str(folder / FILES))))


def _records(listing: JsonObject) -> dict[str, FileRecord]:
    return {name: FileRecord(**record) for name, record in listing["files"].items()}


def read_listing(folder: Path) -> tuple[dict[str, FileRecord], list[str]]:
    """Return the records, and the patterns of inseparable files, of a folder whose `done.json` may be damaged.

    Both are empty where the list is gone or altered.
    """
    path = folder / FILES
    try:
        listing = unseal(path.read_bytes(), str(path), _REMEDY)
    except (FileNotFoundError, IntegrityError):
        return {}, []
    return _records(listing), listing["inseparable"]


def clear_damaged(folder: Path) -> list[str]:
    """Make of a damaged folder one that its maker can go on with, as with what a killed predecessor left.

    What is damaged goes, and so does what nothing vouches for; every file that stays was compared byte for byte. If a
    file is damaged that is made only together with all others, nothing stays.

    Returns:
        Paths of the files that stay.
    """
    records, inseparable = read_listing(folder)
    problems = differing_files(folder, records, always)
    lost = any(fnmatch(name, pattern) for name in problems for pattern in inseparable)
    kept = set() if lost else records.keys() - problems.keys()
    for name in listed_names(folder):
        if name not in kept:
            (folder / name).unlink()
    for name in (DONE, FILES):
        (folder / name).unlink(missing_ok=True)
    return sorted(kept)
