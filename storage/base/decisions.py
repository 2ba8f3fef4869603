"""Records of decisions: splits, withdrawn cases, the release in use. They cannot be computed again.

What belongs here: keeping two copies of such a record, and reading an undamaged one. Not here: the decisions.
Caches and results are no decisions: damaged ones are made again (`storage.base.artefacts`).
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from storage.base.atomic import read_json, write_json
from storage.base.errors import IntegrityError

logger = logging.getLogger(__name__)

T = TypeVar("T", dict[str, str], list[str])


def text_map(content: object) -> dict[str, str] | None:
    """Return JSON content that maps text to text; None if it is anything else."""
    if isinstance(content, dict) and all(isinstance(value, str) for value in content.values()):
        return content
    return None


def text_list(content: object) -> list[str] | None:
    """Return JSON content that lists text; None if it is anything else."""
    return content if isinstance(content, list) and all(isinstance(item, str) for item in content) else None


@dataclass(frozen=True)
class Decisions(Generic[T]):
    """A record and its second copy, `<name>.copy.json`, which is written first."""

    path: Path
    parse: Callable[[object], T | None]
    """Returns the record that JSON content holds, or None if it holds something else."""

    @property
    def copy(self) -> Path:
        """The second copy."""
        return self.path.with_suffix(".copy.json")

    def read(self) -> T | None:
        """Return the record; None if nothing was recorded.

        If the record is missing or damaged, its copy is read; the missing or damaged file is then written again.

        Raises:
            IntegrityError: If both files are damaged, or one is damaged and the other missing.
        """
        if not self.path.exists() and not self.copy.exists():
            return None
        found = self._whole(self.path)
        if found is None:
            found = self._whole(self.copy)
            if found is None:
                raise IntegrityError(
                    f"{self.path}: expected a record of decisions, found it and its copy {self.copy.name} damaged or "
                    "missing; restore one of them from a backup. Do not remove them: the decisions would be lost"
                )
            logger.warning("%s is damaged or missing: its copy %s is used", self.path, self.copy.name)
            write_json(self.path, found)
        elif self._whole(self.copy) is None:
            write_json(self.copy, found)
        return found

    def damages(self) -> dict[str, str]:
        """Return name -> problem of each of the two files that is damaged, and of a missing one whose copy is there.

        A missing copy is no damage: earlier versions kept none.
        """
        files = [file for file in (self.path, self.copy) if file.exists()]
        damaged = [file for file in files if self._whole(file) is None]
        if self.copy in files and self.path not in files:
            damaged.insert(0, self.path)
        whole = [file for file in files if file not in damaged]
        remedy = f"{whole[0].name} is whole: the next run restores it" if whole else "restore it from a backup"
        return {file.name: f"expected a record of decisions, found none; {remedy}" for file in damaged}

    def write(self, value: T) -> None:
        """Record both copies, each whole or not at all."""
        write_json(self.copy, value)
        write_json(self.path, value)

    def _whole(self, path: Path) -> T | None:
        """Return the record in one of the two files; None if the file is missing, cut, or holds something else."""
        try:
            return self.parse(read_json(path))
        except (FileNotFoundError, IntegrityError):
            return None
