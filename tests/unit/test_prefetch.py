"""Loading ahead keeps order, bounds and errors."""

import time

import pytest

from medsam_core.training.prefetch import prefetched


def test_prefetching_keeps_order_and_bounds() -> None:
    started: list[int] = []

    def load(key: int) -> int:
        started.append(key)
        time.sleep(0.002 * (5 - key % 5))
        return key * key

    seen = []
    for item in prefetched(load, range(20), ahead=4, threads=3):
        seen.append(item)
        assert len(started) <= len(seen) + 3
    assert seen == [key * key for key in range(20)]


def test_an_error_of_loading_comes_where_its_item_would() -> None:
    def load(key: int) -> int:
        if key == 2:
            raise KeyError(key)
        return key

    items = prefetched(load, range(5), ahead=3)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(KeyError, match="2"):
        next(items)
