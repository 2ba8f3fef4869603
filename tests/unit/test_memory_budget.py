"""The memory that threads share: given back whatever happens, and never exceeded but by one alone."""

import threading

import pytest

from storage.base.memory_budget import MemoryBudget


def taken_in_time(budget: MemoryBudget, n_bytes: int, seconds: float = 20) -> bool:
    """Whether another thread gets the bytes; it is left behind if it does not."""
    entered = threading.Event()

    def take() -> None:
        with budget.taken(n_bytes):
            entered.set()

    threading.Thread(target=take, daemon=True).start()
    return entered.wait(seconds)


@pytest.mark.parametrize("n_bytes", [1, 10, 100])
def test_bytes_are_given_back_after_an_error(n_bytes: int) -> None:
    budget = MemoryBudget(10)
    for _ in range(2):
        with pytest.raises(RuntimeError), budget.taken(n_bytes):
            raise RuntimeError
    assert taken_in_time(budget, 10)


def test_who_asks_for_more_than_is_left_waits_and_is_woken() -> None:
    budget, entered = MemoryBudget(10), threading.Event()

    def take() -> None:
        with budget.taken(5):
            entered.set()

    waiter = threading.Thread(target=take, daemon=True)
    with budget.taken(6):
        assert taken_in_time(budget, 4)
        waiter.start()
        assert not entered.wait(0.2)
    assert entered.wait(20)


def test_one_that_needs_more_than_there_is_goes_alone() -> None:
    budget = MemoryBudget(10)
    with budget.taken(100):
        assert not taken_in_time(budget, 1, seconds=0.2)
    assert taken_in_time(budget, 1)
