"""The workspace that every task receives: the settings, the profile and the places of all state.

What belongs here: this one object, so that tasks are plain functions without Dagster. Not here: the tasks.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipelines.base.profile import Profile
from pipelines.base.settings import Settings
from storage.base.artefacts import Artefacts
from storage.base.blobs import Blobs, LocalBlobs, open_blobs
from storage.base.decisions import Decisions, text_list, text_map


@dataclass(frozen=True)
class Workspace:
    """Settings plus the folders derived from them."""

    settings: Settings

    @property
    def profile(self) -> Profile:
        """The validated profile."""
        return self.settings.profile

    @cached_property
    def artefacts(self) -> Artefacts:
        """Fingerprinted results: index, release, plan, checkpoints, predictions, reports."""
        return Artefacts(self.settings.state / "artefacts", "materialise the asset that makes it again")

    @property
    def stores(self) -> Blobs:
        """Place of the slice stores, one zarr group per modality."""
        return open_blobs(self.settings.stores)

    @property
    def scan_file(self) -> Path:
        """The last scan of the source, kept so that unchanged files are not read again."""
        return self.settings.state / "manifest" / "scan.parquet"

    @property
    def unfinished_scan_file(self) -> Path:
        """The rows read so far by a scan that was interrupted."""
        return self.settings.state / "manifest" / "unfinished_scan.parquet"

    @property
    def adopted(self) -> Decisions[dict[str, str]]:
        """The fingerprint of the release that training and evaluation used last."""
        return Decisions(self.settings.state / "adopted_release.json", text_map)

    @property
    def withdrawn(self) -> Decisions[list[str]]:
        """Ids of the withdrawn cases, which are never used again."""
        return Decisions(self.settings.state / "withdrawn.json", text_list)

    @property
    def splits(self) -> Decisions[dict[str, str]]:
        """The recorded assignment of patients to splits; it only ever grows."""
        return Decisions(self.settings.state / "splits.json", text_map)

    def cache_folder(self, kind: str) -> Path:
        """Folder of all teacher caches of one kind of answers."""
        return self.settings.state / "caches" / kind

    def cache_root(self, kind: str, fingerprint: str) -> Blobs:
        """Place of one teacher cache."""
        return LocalBlobs(self.cache_folder(kind) / fingerprint[:16])
