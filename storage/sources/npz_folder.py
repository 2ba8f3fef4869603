"""A folder of the challenge's npz files, as a source.

What belongs here: which file a case is, and how files are read. Not here: finding them
(`storage.sources.npz_listing`), what is in one (`storage.sources.npz_source`).
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from storage.base.fingerprints import fingerprint
from storage.sources.case import Case
from storage.sources.npz_listing import ENDINGS, list_files
from storage.sources.npz_source import ACCEPTED_ALIKE_SINCE, READER_VERSION, case_memory, read_case
from storage.sources.source import Listing, Reading, SourceConfig, Use, modality_of_path


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
        """Return a case's file; its ending may be in upper case."""
        paths = [self.root / f"{case_id}{ending}" for ending in ENDINGS]
        return next((path for path in paths if path.exists()), paths[0])

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
