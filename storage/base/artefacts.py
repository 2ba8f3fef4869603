"""Expensive results, each in a folder named by the fingerprint of what it was made from.

What belongs here: finding, making once and reusing such folders. Not here: what any of them holds.

A folder is `<root>/<kind>/<first 16 hex digits of its fingerprint>/`. It holds `made_from.json` from the start, the
maker's files, and `done.json`, written last: without it the folder is unfinished work that its maker may resume.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.base.atomic import read_json, write_json
from storage.base.errors import IntegrityError
from storage.base.fingerprints import fingerprint, require_same
from storage.base.locks import exclusive_lock

DONE = "done.json"
MADE_FROM = "made_from.json"


@dataclass(frozen=True)
class Artefact:
    """A finished result.

    Attributes:
        kind: What it is, for example `release`.
        fingerprint: SHA-256 hex digest of what it was made from.
        path: Its folder.
        info: Small plain facts its maker left (counts, scores).
        reused: True if it was found rather than made by this call.
    """

    kind: str
    fingerprint: str
    path: Path
    info: dict[str, Any]
    reused: bool

    def reference(self) -> dict[str, Any]:
        """Return the small plain value that travels between steps: no path, so that the root may move."""
        return {"kind": self.kind, "fingerprint": self.fingerprint, "info": self.info, "reused": self.reused}


class Artefacts:
    """All artefacts below one root folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, kind: str, digest: str) -> Path:
        """Return where an artefact of this fingerprint lies or would lie."""
        return self.root / kind / digest[:16]

    def find(self, kind: str, made_from: Mapping[str, Any]) -> Artefact | None:
        """Return the finished artefact made from exactly this, or None.

        Raises:
            FingerprintMismatchError: If the folder of that name was made from something else.
        """
        digest = fingerprint(made_from)
        folder = self.folder(kind, digest)
        if not (folder / DONE).is_file():
            return None
        remedy = f"delete {folder} and run again"
        require_same(f"{kind} in {folder}", made_from, read_json(folder / MADE_FROM), remedy)
        return Artefact(kind, digest, folder, read_json(folder / DONE), reused=True)

    def get(self, reference: Mapping[str, Any]) -> Artefact:
        """Return the artefact that a step's value names.

        Raises:
            IntegrityError: If its folder is gone or unfinished.
        """
        kind, digest = reference["kind"], reference["fingerprint"]
        folder = self.folder(kind, digest)
        if not (folder / DONE).is_file():
            raise IntegrityError(
                f"expected a finished {kind} in {folder}, found none; materialise the asset that makes it again"
            )
        return Artefact(kind, digest, folder, read_json(folder / DONE), reused=True)

    def make(self, kind: str, made_from: Mapping[str, Any], build: Callable[[Path], Mapping[str, Any]]) -> Artefact:
        """Return the artefact made from exactly this, building it only if it is not there.

        Args:
            kind: Name of the folder level that groups artefacts of one sort.
            made_from: Plain value that determines the result completely.
            build: Called with the folder, which may hold what a killed predecessor left; returns plain facts.

        Raises:
            BusyError: If another process is building it.
        """
        found = self.find(kind, made_from)
        if found:
            return found
        digest = fingerprint(made_from)
        folder = self.folder(kind, digest)
        with exclusive_lock(folder.with_name(f"{folder.name}.lock"), what=f"{kind} {digest[:16]}"):
            found = self.find(kind, made_from)
            if found:
                return found
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / MADE_FROM, dict(made_from))
            write_json(folder / DONE, dict(build(folder)))
        return Artefact(kind, digest, folder, read_json(folder / DONE), reused=False)
