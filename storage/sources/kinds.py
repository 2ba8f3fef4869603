"""The registry of kinds of source, by name.

What belongs here: the registry. Not here: any file format; a new format is a class (`storage.sources.source`) that is
passed to `register`, and nothing else changes. Profiles read the names of kinds, so no slow import is allowed here.
Installed packages add kinds through the entry point group `repvit_medsam.sources`; each entry point names the function
that opens a source.
"""

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from storage.base.errors import StorageError

if TYPE_CHECKING:
    from storage.sources.source import Source, SourceConfig

OpenSource = Callable[[Path, "SourceConfig"], "Source"]

ENTRY_POINTS = "repvit_medsam.sources"

_KINDS: dict[str, OpenSource] = {}


def register(kind: str, opener: OpenSource) -> None:
    """Make a kind of source known; a profile chooses it by `source.kind`.

    Raises:
        StorageError: If another kind has this name.
    """
    if _KINDS.setdefault(kind, opener) is not opener:
        raise StorageError(f"source kind {kind!r}: expected a name that is free, found it taken; choose another")


def source_kinds() -> tuple[str, ...]:
    """Return the names of all kinds; those of installed packages come last."""
    return (*_KINDS, *sorted(entry_points(group=ENTRY_POINTS).names))


def is_source_kind(kind: str) -> bool:
    """Return whether a kind is known; installed packages are searched only for names that this project lacks."""
    return kind in _KINDS or kind in source_kinds()


def open_source(kind: str, root: Path, config: "SourceConfig") -> "Source":
    """Return a source of the given kind at a place.

    Raises:
        StorageError: If the kind is unknown.
    """
    if not is_source_kind(kind):
        known = ", ".join(source_kinds())
        raise StorageError(f"source kind: expected one of {known}, found {kind!r}; correct source.kind")
    opener: OpenSource = _KINDS[kind] if kind in _KINDS else entry_points(group=ENTRY_POINTS)[kind].load()
    return opener(root, config)


def _npz_folder(root: Path, config: "SourceConfig") -> "Source":
    from storage.sources.npz_folder import NpzFolder

    return NpzFolder(root, config)


register("folder", _npz_folder)
register("synthetic", _npz_folder)
