"""The locks of a teacher cache. What belongs here: taking them. Not here: the work that they protect.

Writers share one lock, readers share another. So several parts may be written at once, and no process replaces,
publishes or deletes answers while another process reads them.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from storage.answers.cache_manifest import cache_name, require_published
from storage.base.blobs import Blobs
from storage.shards.fragments import MANIFEST


def _readers(root: Blobs) -> Blobs:
    """Return the place whose lock the readers share."""
    return root.below("readers")


def writing_access(root: Blobs) -> AbstractContextManager[None]:
    """Hold the writers' lock for the block: no process can publish or delete the cache, other writers may enter.

    Raises:
        BusyError: If another process is publishing or deleting the cache.
    """
    return root.shared(cache_name(root))


def reading_access(root: Blobs) -> AbstractContextManager[None]:
    """Hold the readers' lock for the block: no process can replace or delete answers of the cache.

    Raises:
        StorageError: If the cache is not published.
        BusyError: If another process is replacing or deleting answers.
    """
    require_published(root)
    return _readers(root).shared(cache_name(root))


@contextmanager
def exclusive_access(root: Blobs) -> Iterator[None]:
    """Lock writers, publishers and readers out of a cache for the block.

    Raises:
        BusyError: If one of them holds a lock.
    """
    name = cache_name(root)
    with root.exclusive(name), _readers(root).exclusive(name):
        yield


def unpublish(root: Blobs) -> None:
    """Delete the manifest, so that the cache cannot be opened.

    Raises:
        BusyError: If another process reads the cache.
    """
    if root.size(MANIFEST) is not None:
        with _readers(root).exclusive(cache_name(root)):
            root.delete(MANIFEST)
