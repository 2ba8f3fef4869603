"""Where cases come from: what every source can do, and how it is told to read.

What belongs here: the `Source` Protocol. Not here: any file format, which kinds of source there are
(`storage.sources.kinds`).
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
"""Times its array bytes that a case takes at most while it is read: once, and once more where the file's labels are
wider than the stored ones or its arrays in Fortran order."""


class Use(Enum):
    """What a case is read for. Arrays that are not used never decide whether it can be."""

    LABELS = "labels"
    """Image, label ids and spacing: to store, train and score. Boxes are kept where they are sound, else left out."""
    BOXES = "boxes"
    """Image and boxes: to predict. Labels and spacing are not read."""


@dataclass(frozen=True)
class SourceConfig:
    """How the files of one source are to be understood."""

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
    """Names of ways of reading, recorded with each file so that it is not read again while the way is the same."""

    now: str
    accepted_alike: frozenset[str] = frozenset()
    """Earlier ways: what they accepted is read alike now, what they rejected may be accepted now."""


@dataclass(frozen=True, eq=False)
class Listing:
    """What a source found, without opening anything."""

    files: pd.DataFrame
    """One row for each case, sorted: case_id, n_bytes, mtime_ns, ctime_ns."""
    skipped: pd.DataFrame
    """What else lies there and was not taken: reason, count, examples (paths below the place, separated by commas)."""


class Source(Protocol):
    """A place that holds cases. May be pickled: worker processes read it too."""

    @property
    def place(self) -> str:
        """Where it lies: a path or a URL."""

    @property
    def reading(self) -> Reading:
        """How cases are read; another version or configuration has another name."""

    def list(self) -> Listing:
        """Return every case, opening none.

        Raises:
            StorageError: If the place itself cannot be listed.
        """

    def modality(self, case_id: str) -> str:
        """Return a case's canonical modality, one of `storage.base.modalities.MODALITIES`; empty if none is stated."""

    def memory(self, case_id: str, n_bytes: int, at_ease: int) -> int:
        """Return a bound on the bytes that reading a case takes.

        Args:
            case_id: The case.
            n_bytes: What it takes in the source.
            at_ease: A case that cannot take more than this need not be opened to know better.

        Raises:
            BadSampleError: If it cannot be used, as far as that can be told.
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
