"""Verifying artefacts: reading every file again to find damage, and withdrawing damaged artefacts.

What belongs here: comparing every folder below a root byte for byte; withdrawing a damaged artefact; recording hashes
for an artefact of an earlier version. Not here: the checks before reuse (`storage.base.artefacts`), making again.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from storage.base.artefacts import artefact_lock
from storage.base.clearing import clear_damaged
from storage.base.errors import IntegrityError
from storage.base.file_records import differing_files
from storage.base.fingerprints import fingerprint
from storage.base.finished import (
    DONE,
    FILES,
    MADE_FROM,
    always,
    read_finished,
    read_listing,
    read_origin,
    write_finished,
)

State = Literal["whole", "damaged", "unfinished", "unvouched"]
"""`unvouched`: finished by an earlier version, which recorded no hashes of files."""


@dataclass(frozen=True)
class FolderState:
    """The state of one artefact's folder.

    Attributes:
        kind: Kind of the artefact, for example `release`.
        folder: Its folder.
        state: Its state.
        n_files: Number of files with a recorded hash.
        n_bytes: Their size together.
        damages: Path below the folder -> problem.
    """

    kind: str
    folder: Path
    state: State
    n_files: int = 0
    n_bytes: int = 0
    damages: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Kind of the artefact and name of its folder."""
        return f"{self.kind} {self.folder.name}"


def artefact_folders(root: Path) -> list[tuple[str, Path]]:
    """Return kind and folder of every artefact below a root, finished or not."""
    return [(path.parent.name, path) for path in sorted(root.glob("*/*")) if path.is_dir()]


def verify_folder(kind: str, folder: Path) -> FolderState:
    """Compare every file of an artefact with its recorded size and hash."""
    if not (folder / DONE).is_file() and not (folder / FILES).is_file():
        return FolderState(kind, folder, "unfinished")
    damages = _origin_damage(folder)
    try:
        files = read_finished(folder).files
    except FileNotFoundError:
        damages[DONE] = f"expected it beside {FILES}, found no file"
        files = read_listing(folder)[0]
    except IntegrityError as error:
        files = read_listing(folder)[0]
        damages[DONE if files else FILES] = str(error)
    if files is None:
        return FolderState(kind, folder, "damaged" if damages else "unvouched", damages=damages)
    damages |= differing_files(folder, files, always)
    n_bytes = sum(record.n_bytes for record in files.values())
    return FolderState(kind, folder, "damaged" if damages else "whole", len(files), n_bytes, damages)


def _origin_damage(folder: Path) -> dict[str, str]:
    """Return the damage of `made_from.json`: its content must have the fingerprint that names the folder."""
    try:
        digest = fingerprint(read_origin(folder))
    except (FileNotFoundError, IntegrityError) as error:
        return {MADE_FROM: str(error)}
    if digest.startswith(folder.name):
        return {}
    return {MADE_FROM: f"expected the origin of fingerprint {folder.name}, found that of {digest[:16]}"}


def withdraw_folder(found: FolderState) -> list[str]:
    """Mark a damaged artefact as unfinished, so that its maker makes it again; return the files that are kept.

    Raises:
        BusyError: If another process is making it.
    """
    with artefact_lock(found.folder, found.kind):
        return clear_damaged(found.folder)


def vouch_for_folder(found: FolderState) -> None:
    """Record the present sizes and hashes of the files of an artefact that an earlier version made.

    Raises:
        BusyError: If another process is making it.
    """
    with artefact_lock(found.folder, found.kind):
        write_finished(found.folder, read_finished(found.folder).info)
