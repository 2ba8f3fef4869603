"""The folders of MEDSAM_DATA and the maps of MEDSAM_GROUPS, as text and as values.

What belongs here: their grammar, `PATH[:train=PATH...]`. Not here: the other variables (`pipelines.base.variables`),
what a role means (`storage.sources.roles`).
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from storage.sources.roles import ROLES, Role

_ROLE: Final = re.compile(r"(\w+)=(.*)", re.DOTALL)


@dataclass(frozen=True)
class DataFolder:
    """A folder of cases and its role."""

    path: Path
    role: Role = "split"

    def __str__(self) -> str:
        """Return the folder as MEDSAM_DATA names it."""
        return str(self.path) if self.role == "split" else f"{self.role}={self.path}"


def parse_folders(value: str) -> tuple[DataFolder, ...]:
    """Return the folders that a value of MEDSAM_DATA names, with absolute paths.

    A value that is the path of a folder means that folder, whatever characters are in it. In a list a path may hold
    `=` but no path separator.

    Raises:
        ValueError: If an entry is empty or has an unknown role, or no folder is there to be divided.
    """
    whole = _absolute(value)
    if whole.is_dir():
        return (DataFolder(whole),)
    folders = tuple(_folder(entry) for entry in value.split(os.pathsep))
    if all(folder.role == "train" for folder in folders):
        raise ValueError("expected a folder whose patients select and test, found train= alone; add a folder without")
    return folders


def _folder(entry: str) -> DataFolder:
    if not entry:
        raise ValueError(f"expected folders separated by {os.pathsep!r}, found an empty one; remove what is too many")
    found = _ROLE.fullmatch(entry)
    if found is None or _absolute(entry).is_dir():
        return DataFolder(_absolute(entry))
    role, path = found.groups()
    if role not in ROLES or not path:
        raise ValueError(
            f"expected {' or '.join(f'{name}=PATH' for name in ROLES)}, found {entry!r}; begin a path that has a = in "
            "its first folder's name with ./"
        )
    return DataFolder(_absolute(path), cast("Role", role))


def folders_text(folders: Sequence[DataFolder]) -> str:
    """Return folders as MEDSAM_DATA names them."""
    return os.pathsep.join(str(folder) for folder in folders)


def parse_maps(value: str) -> tuple[Path | None, ...]:
    """Return the maps that a value of MEDSAM_GROUPS names, one for each folder in order; an empty entry means none."""
    if _absolute(value).is_file():
        return (_absolute(value),)
    return tuple(_absolute(entry) if entry else None for entry in value.split(os.pathsep))


def maps_text(maps: Sequence[Path | None]) -> str:
    """Return maps as MEDSAM_GROUPS names them."""
    return os.pathsep.join(str(path or "") for path in maps)


def _absolute(path: str) -> Path:
    return Path(path).expanduser().absolute()
