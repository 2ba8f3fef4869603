"""Which kinds of source there are, by name.

What belongs here: the registry. Not here: any file format; a new one is a class of its own (`storage.sources.source`)
that is `register`ed, and nothing else changes. Profiles ask which kinds there are, so nothing heavy is imported.
Installed packages add kinds of their own through the entry point group `repvit_medsam.sources`; each entry point names
what opens a source.
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
        StorageError: If the name is taken by another one.
    """
    if _KINDS.setdefault(kind, opener) is not opener:
        raise StorageError(f"source kind {kind!r}: expected a name that is free, found it taken; choose another")


def source_kinds() -> tuple[str, ...]:
    """Return the kinds of source that are known, installed ones last."""
    return (*_KINDS, *sorted(entry_points(group=ENTRY_POINTS).names))


def is_source_kind(kind: str) -> bool:
    """Return whether a kind is known; what is installed is looked up for others than the own kinds alone."""
    return kind in _KINDS or kind in source_kinds()


def open_source(kind: str, root: Path, config: "SourceConfig") -> "Source":
    """Return the source of a kind at a place.

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
