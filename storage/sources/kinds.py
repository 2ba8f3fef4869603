"""Which kinds of source there are, by name.

What belongs here: the registry. Not here: any file format; a new one is a class of its own (`storage.sources.source`)
that is `register`ed, and nothing else changes. Profiles ask which kinds there are, so nothing heavy is imported.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from storage.base.errors import StorageError

if TYPE_CHECKING:
    from storage.sources.source import Source, SourceConfig

OpenSource = Callable[[Path, "SourceConfig"], "Source"]

_KINDS: dict[str, OpenSource] = {}


def register(kind: str, opener: OpenSource) -> None:
    """Make a kind of source known; a profile chooses it by `source.kind`.

    Raises:
        StorageError: If the name is taken by another one.
    """
    if _KINDS.setdefault(kind, opener) is not opener:
        raise StorageError(f"source kind {kind!r}: expected a name that is free, found it taken; choose another")


def source_kinds() -> tuple[str, ...]:
    """Return the kinds of source that are known."""
    return tuple(_KINDS)


def open_source(kind: str, root: Path, config: "SourceConfig") -> "Source":
    """Return the source of a kind at a place.

    Raises:
        StorageError: If the kind is unknown.
    """
    if kind not in _KINDS:
        raise StorageError(f"source kind: expected one of {', '.join(_KINDS)}, found {kind!r}; correct source.kind")
    return _KINDS[kind](root, config)


def _npz_folder(root: Path, config: "SourceConfig") -> "Source":
    from storage.sources.npz_folder import NpzFolder

    return NpzFolder(root, config)


register("folder", _npz_folder)
register("synthetic", _npz_folder)
