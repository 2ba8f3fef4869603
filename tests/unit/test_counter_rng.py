"""Random numbers with addresses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsam_core.base.counter_rng import CounterRng, below

RNG = CounterRng(seed=7, purpose="test")


@settings(deadline=None)
@given(st.integers(0, 200), st.integers(0, 50), st.integers(1, 9))
def test_an_item_does_not_depend_on_where_reading_starts(first: int, count: int, width: int) -> None:
    whole = RNG.raw("name", 0, first + count, width)
    np.testing.assert_array_equal(RNG.raw("name", first, count, width), whole[first:])


def test_reading_may_start_far_out() -> None:
    assert len(np.unique(RNG.raw("name", 10**12, 50, 4))) == 200


@pytest.mark.parametrize("other", [CounterRng(8, "test"), CounterRng(7, "other")])
def test_seed_and_purpose_make_other_streams(other: CounterRng) -> None:
    assert not np.isin(RNG.raw("name", 0, 100, 4), other.raw("name", 0, 100, 4)).any()


def test_names_and_widths_make_other_streams() -> None:
    mine = RNG.raw("name", 0, 100, 4)
    assert not np.isin(mine, RNG.raw("other", 0, 100, 4)).any()
    assert not np.isin(mine, RNG.raw("name", 0, 100, 5)).any()


def test_uniform_numbers_fill_the_unit_interval() -> None:
    values = RNG.uniform("name", 0, 50_000, 2)
    assert values.min() >= 0
    assert values.max() < 1
    assert abs(values.mean() - 0.5) < 0.005
    assert abs(values.var() - 1 / 12) < 0.002


def test_the_largest_number_stays_below_every_bound() -> None:
    bounds = np.concatenate([np.arange(1, 10_000), 2 ** np.arange(14, 40), 2 ** np.arange(14, 40) + 1])
    np.testing.assert_array_equal(below(np.full(len(bounds), 1 - 2.0**-53), bounds), bounds - 1)
    np.testing.assert_array_equal(below(np.zeros(len(bounds)), bounds), 0)


def test_permutations_reach_every_order_equally() -> None:
    orders, counts = np.unique(RNG.permutations("name", 0, 6000, 3), axis=0, return_counts=True)
    assert len(orders) == 6
    # Binomial(6000, 1/6) has a standard deviation of 29: five of them either side.
    assert np.abs(counts - 1000).max() < 145
