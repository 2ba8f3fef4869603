"""Loading ahead of the loop. What belongs here: order and bounds of background work. Not here: what is loaded."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Key = TypeVar("Key")
Item = TypeVar("Item")


def prefetched(
    load: Callable[[Key], Item], keys: Iterable[Key], *, ahead: int = 2, threads: int = 1
) -> Generator[Item, None, None]:
    """Yield `load(key)` for every key, in the order of the keys, loading up to `ahead` items early.

    The items do not depend on `ahead` or `threads`. An error of `load` is raised where its item would have come.

    Args:
        load: Called in a background thread; with more than one thread it must be safe to call concurrently.
        keys: Consumed lazily.
        ahead: Items that may wait or be under way at once, which bounds the memory they take; at least 1.
        threads: Background threads; at least 1.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="prefetch") as pool:
        waiting: deque[Future[Item]] = deque()
        try:
            for key in keys:
                if len(waiting) == ahead:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(load, key))
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
