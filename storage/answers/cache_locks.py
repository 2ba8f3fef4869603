"""Who may enter a teacher cache, and when. What belongs here: its locks. Not here: what is done under them.

Writers share one lock, readers another. So parts may be written beside each other, while nobody replaces, publishes or
deletes what is being read.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from storage.answers.cache_manifest import cache_name, require_published
from storage.base.blobs import Blobs
from storage.shards.fragments import MANIFEST


def _readers(root: Blobs) -> Blobs:
    """Return the place whose lock readers share."""
    return root.below("readers")


def writing_access(root: Blobs) -> AbstractContextManager[None]:
    """Keep a cache from being published or deleted for a block; other writers may enter.

    Raises:
        BusyError: If it is about to be.
    """
    return root.shared(cache_name(root))


def reading_access(root: Blobs) -> AbstractContextManager[None]:
    """Keep a cache's answers as they are for a block: neither replaced nor deleted.

    Raises:
        StorageError: If the cache is not published.
        BusyError: If its answers are about to be replaced or deleted.
    """
    require_published(root)
    return _readers(root).shared(cache_name(root))


@contextmanager
def exclusive_access(root: Blobs) -> Iterator[None]:
    """Keep writers, publishers and readers out of a cache for a block.

    Raises:
        BusyError: If one of them is at work.
    """
    name = cache_name(root)
    with root.exclusive(name), _readers(root).exclusive(name):
        yield


def unpublish(root: Blobs) -> None:
    """Withdraw the manifest, without which nobody opens the cache.

    Raises:
        BusyError: If somebody reads it.
    """
    if root.size(MANIFEST) is not None:
        with _readers(root).exclusive(cache_name(root)):
            root.delete(MANIFEST)
