"""A folder of the challenge's npz files, as a source.

What belongs here: which file a case is, and how files are read. Not here: finding them
(`storage.sources.npz_listing`), what is in one (`storage.sources.npz_source`).
"""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from storage.base.fingerprints import fingerprint
from storage.sources.case import Case
from storage.sources.npz_listing import ENDINGS, list_files
from storage.sources.npz_source import ACCEPTED_ALIKE_SINCE, READER_VERSION, case_memory, read_case
from storage.sources.source import Listing, Reading, SourceConfig, Use, modality_of_path, reject

_OTHER_ENCODING: Final = re.compile(r"\\udc[89a-f][0-9a-f]")
"""How a listing writes a byte of a name that is not UTF-8."""


@dataclass(frozen=True)
class NpzFolder:
    """Every npz file below a folder; a case's id is its path below it without the ending."""

    root: Path
    config: SourceConfig

    @property
    def place(self) -> str:
        """The folder's path."""
        return str(self.root)

    @property
    def reading(self) -> Reading:
        """How files are read."""
        earlier = range(ACCEPTED_ALIKE_SINCE, READER_VERSION)
        return Reading(self._way(READER_VERSION), frozenset(map(self._way, earlier)))

    def _way(self, version: int) -> str:
        return fingerprint({"version": version, **asdict(self.config)})[:16]

    def list(self) -> Listing:
        """Return every npz file; see `list_files`.

        Raises:
            StorageError: If the folder cannot be listed.
        """
        return list_files(self.root)

    def path(self, case_id: str) -> Path:
        """Return a case's file; its ending may be in upper case.

        Raises:
            BadSampleError: If the name of the file, or of a folder above it, is not UTF-8, so that no id can name it.
        """
        paths = [self.root / f"{case_id}{ending}" for ending in ENDINGS]
        found = next((path for path in paths if path.exists()), None)
        if found is None and _OTHER_ENCODING.search(case_id):
            reject("unreadable", "expected a name in UTF-8, found bytes of another encoding; rename the file or folder")
        return found or paths[0]

    def modality(self, case_id: str) -> str:
        """Return the modality that the name states, else the nearest folder, the root being the last; else nothing."""
        return modality_of_path(case_id, self.root)

    def memory(self, case_id: str, n_bytes: int, at_ease: int) -> int:
        """Return a bound on the bytes that reading a file takes; see `case_memory`.

        Raises:
            BadSampleError: If the file cannot be used, as far as headers tell.
        """
        return case_memory(self.path(case_id), n_bytes, self.config, at_ease)

    def read(self, case_id: str, use: Use = Use.LABELS) -> Case:
        """Read a file; see `read_case`.

        Raises:
            BadSampleError: If it cannot be used, for a reason that matters to `use`.
        """
        return read_case(self.path(case_id), case_id, self.modality(case_id), self.config, use)
