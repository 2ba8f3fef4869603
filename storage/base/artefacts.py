"""Expensive results, each in a folder named by the fingerprint of what it was made from.

What belongs here: finding, making once and reusing such folders. Not here: the content of a folder, the recorded hashes
of its files (`storage.base.finished`).

A folder is `<root>/<kind>/<first 16 hex digits of its fingerprint>/`. It holds `made_from.json` from the start, the
maker's files, `files.json` and, written last, `done.json`. A folder without `done.json` is unfinished: its maker may
resume the work. A result whose files have changed is never used: the changed files are made again.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from storage.base.atomic import remove_partials, write_json
from storage.base.blobs import JsonObject
from storage.base.checked_files import CheckedFiles
from storage.base.clearing import clear_damaged, make_room
from storage.base.errors import IntegrityError
from storage.base.fingerprints import fingerprint, require_same
from storage.base.finished import (
    DONE,
    FILES,
    MADE_FROM,
    is_small,
    read_finished,
    read_origin,
    write_finished,
)
from storage.base.locks import exclusive_lock
from storage.base.references import ArtefactRef

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Artefact:
    """A finished result.

    Attributes:
        kind: What it is, for example `release`.
        fingerprint: SHA-256 hex digest of what it was made from.
        path: Its folder.
        info: A few facts that its maker recorded (counts, scores).
        reused: True if the artefact existed before this call.
    """

    kind: str
    fingerprint: str
    path: Path
    info: JsonObject
    reused: bool

    def reference(self) -> ArtefactRef:
        """Return the value that names this artefact between steps; it holds no path, so that the root may move."""
        return ArtefactRef(self.kind, self.fingerprint, self.info, self.reused)


def artefact_lock(folder: Path, kind: str) -> AbstractContextManager[None]:
    """Lock an artefact for the block: no other process may make it, withdraw it or record its hashes.

    Raises:
        BusyError: If another process holds the lock.
    """
    return exclusive_lock(folder.with_name(f"{folder.name}.lock"), what=f"{kind} {folder.name}")


class Artefacts:
    """All artefacts below one root folder.

    Attributes:
        root: The folder.
        remedy: What a user should do when a referenced artefact is missing or damaged; ends the error message.
    """

    def __init__(self, root: Path, remedy: str = "make it again") -> None:
        self.root = root
        self.remedy = remedy

    def folder(self, kind: str, digest: str) -> Path:
        """Return the folder of an artefact of this fingerprint, whether it exists or not."""
        return self.root / kind / digest[:16]

    def find(self, kind: str, made_from: Mapping[str, object]) -> Artefact | None:
        """Return the finished artefact made from exactly these inputs, or None; a damaged one is logged as a warning.

        Raises:
            FingerprintMismatchError: If the folder of that name was made from something else.
        """
        found, problem = self._look(kind, made_from)
        if problem:
            logger.warning("%s; it is not used", problem)
        return found

    def _look(self, kind: str, made_from: Mapping[str, object]) -> tuple[Artefact | None, str]:
        """Return the artefact and no problem, or None and the problem; an unfinished artefact is no problem."""
        digest = fingerprint(made_from)
        folder = self.folder(kind, digest)
        if not (folder / DONE).is_file():
            return None, ""
        try:
            found = self._opened(kind, digest, reused=True)
        except IntegrityError as error:
            return None, str(error)
        try:
            origin = read_origin(folder)
        except (FileNotFoundError, IntegrityError) as error:
            return None, f"{kind} in {folder} is damaged: {MADE_FROM}: {error}"
        require_same(f"{kind} in {folder}", made_from, origin, f"delete {folder} and run again")
        return found, ""

    def _opened(self, kind: str, digest: str, *, reused: bool) -> Artefact:
        """Return a finished artefact; IntegrityError if it is damaged."""
        folder = self.folder(kind, digest)
        what = f"{kind} in {folder} is damaged"
        try:
            finished = read_finished(folder)
        except IntegrityError as error:
            raise IntegrityError(f"{what}: {error}") from error
        checked = CheckedFiles(folder)
        problems = finished.damages(folder, lambda name, record: checked.unknown(name) or is_small(name, record))
        if problems:
            name, problem = next(iter(problems.items()))
            more = f", and {len(problems) - 1} files more" if len(problems) > 1 else ""
            raise IntegrityError(f"{what}: {name}: {problem}{more}")
        checked.remember(finished.files or ())
        return Artefact(kind, digest, folder, finished.info, reused=reused)

    def get(self, reference: ArtefactRef) -> Artefact:
        """Return the artefact of a reference.

        Raises:
            IntegrityError: If its folder is gone, unfinished or damaged.
        """
        kind, digest = reference.kind, reference.fingerprint
        folder = self.folder(kind, digest)
        if not (folder / DONE).is_file():
            raise IntegrityError(f"expected a finished {kind} in {folder}, found none; {self.remedy}")
        try:
            return self._opened(kind, digest, reused=True)
        except IntegrityError as error:
            raise IntegrityError(f"{error}; {self.remedy}") from error

    def make(
        self,
        kind: str,
        made_from: Mapping[str, object],
        build: Callable[[Path], Mapping[str, object]],
        inseparable: Sequence[str] = (),
    ) -> Artefact:
        """Return the artefact made from exactly these inputs; build it if it does not exist or is damaged.

        Args:
            kind: Kind of the artefact; names the folder that holds all artefacts of this kind.
            made_from: Plain value that determines the result completely.
            build: Called with the folder and returns plain facts. The folder may hold files of a killed predecessor, or
                the undamaged files of a damaged result.
            inseparable: Patterns of files that `build` can make only together with all others: if one of them is
                damaged later, `build` begins with an empty folder.

        Raises:
            BusyError: If another process is building it.
            FingerprintMismatchError: If the folder of that name was made from something else.
        """
        found = self.find(kind, made_from)
        if found:
            return found
        digest = fingerprint(made_from)
        folder = self.folder(kind, digest)
        with artefact_lock(folder, kind):
            found, problem = self._look(kind, made_from)
            if found:
                return found
            make_room(folder)
            if problem or any((folder / name).exists() for name in (DONE, FILES)):
                kept = clear_damaged(folder)
                logger.warning("%s in %s is made again; %d of its files are whole and stay", kind, folder, len(kept))
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / MADE_FROM, dict(made_from))
            facts = build(folder)
            # Of makers that were killed amid a file; a checkpoint's may be as large as the result.
            remove_partials(folder)
            write_finished(folder, facts, inseparable)
        return self._opened(kind, digest, reused=False)
