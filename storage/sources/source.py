"""Sources of cases: the interface of every source, and its configuration.

What belongs here: the `Source` Protocol. Not here: any file format, the registry of kinds (`storage.sources.kinds`).
"""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final, Literal, NoReturn, Protocol

import pandas as pd

from storage.base.errors import BadSampleError
from storage.base.modalities import modality_of
from storage.sources.case import Case

CASE_COPIES: Final = 2
"""Most memory for reading a case, as a multiple of its array bytes: a second copy is needed if the labels in the file
are wider than the stored ones, or if its arrays are in Fortran order."""


class Use(Enum):
    """The purpose of reading a case. Arrays that it does not need are never a reason to reject the case."""

    LABELS = "labels"
    """Image, label ids and spacing: to store, train and score. Valid boxes are kept, invalid ones are left out."""
    BOXES = "boxes"
    """Image and boxes: to predict. Labels and spacing are not read."""


@dataclass(frozen=True)
class SourceConfig:
    """The configuration of one source."""

    spacing_order: Literal["zyx", "xyz"] = "zyx"
    """Axis order of `spacing` in the files; the organisers' converter writes xyz."""
    max_case_bytes: int = 8 * 2**30
    """Most array bytes that one file may promise in its headers."""

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If one is out of range.
        """
        if self.spacing_order not in ("zyx", "xyz"):
            raise ValueError(
                f"spacing_order: expected 'zyx' or 'xyz', found {self.spacing_order!r}; correct the source"
            )
        if self.max_case_bytes < 1:
            raise ValueError(f"max_case_bytes: expected at least 1, found {self.max_case_bytes}; correct the source")


@dataclass(frozen=True)
class Reading:
    """Names of reader versions, recorded with each file; a file is read again only if the version has changed."""

    now: str
    accepted_alike: frozenset[str] = frozenset()
    """Earlier versions: a file that they accepted gives the same case now; one that they rejected is read again."""


SKIPPED_COLUMNS: Final = ("reason", "count", "examples")
"""Columns of the table of skipped files."""


@dataclass(frozen=True, eq=False)
class Listing:
    """The files of a source, found without opening any of them."""

    files: pd.DataFrame
    """One row for each case, sorted: case_id, n_bytes, mtime_ns, ctime_ns."""
    skipped: pd.DataFrame
    """Skipped files: reason, count, examples (paths below the place, separated by commas)."""


class Source(Protocol):
    """A place that holds cases. May be pickled: worker processes read it too."""

    @property
    def place(self) -> str:
        """Address of the source: a path or a URL."""

    @property
    def reading(self) -> Reading:
        """The version and configuration of the reader, by name."""

    def list(self) -> Listing:
        """Return every case without opening a file.

        Raises:
            StorageError: If the place itself cannot be listed.
        """

    def modality(self, case_id: str) -> str:
        """Return a case's canonical modality, one of `storage.base.modalities.MODALITIES`; empty if none is stated."""

    def memory(self, case_id: str, n_bytes: int, at_ease: int) -> int:
        """Return an upper bound of the memory for reading a case, in bytes.

        Args:
            case_id: The case.
            n_bytes: Its size in the source.
            at_ease: A case that cannot need more bytes than this need not be opened for a tighter bound.

        Raises:
            BadSampleError: If the headers show that the case cannot be used.
        """

    def read(self, case_id: str, use: Use = Use.LABELS) -> Case:
        """Read, check and normalise a case.

        Raises:
            BadSampleError: If it cannot be used, for a reason that matters to `use`.
        """


def modality_of_path(case_id: str, root: Path) -> str:
    """Return the modality that a path states: by its name, else by the nearest folder, the root being the last."""
    *folders, name = case_id.split("/")
    return modality_of(name, [*reversed(folders), root.name]) or ""


def reject(code: str, message: str) -> NoReturn:
    """Give up on a case.

    Raises:
        BadSampleError: Always; without the cause, whose traceback would name this machine's paths.
    """
    raise BadSampleError(code, message) from None
