"""Batches are cut where padding is cheapest."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.data.collate import cut_by_length


def cost(lengths, cuts, overhead):
    return sum(max(lengths[c]) * len(lengths[c]) + overhead for c in cuts)


def all_cuts(count, most, start=0):
    if start == count:
        yield []
    for stop in range(start + 1, min(count, start + most) + 1):
        for rest in all_cuts(count, most, stop):
            yield [slice(start, stop), *rest]


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=9),
    st.integers(1, 9),
    st.integers(0, 80),
)
def test_no_other_cut_costs_less(lengths, most, overhead):
    cuts = cut_by_length(lengths, most, overhead)
    assert [i for c in cuts for i in range(len(lengths))[c]] == list(range(len(lengths)))
    assert all(c.stop - c.start <= most for c in cuts)
    least = min(cost(lengths, other, overhead) for other in all_cuts(len(lengths), most))
    assert cost(lengths, cuts, overhead) == least


def test_nothing_is_cut_into_nothing():
    assert cut_by_length([], 4, 10) == []


@pytest.mark.parametrize("overhead", [0, 10**6])
def test_rows_of_one_length_stay_together_unless_batches_cost_nothing(overhead):
    cuts = cut_by_length([7] * 12, 12, overhead)
    assert sum(c.stop - c.start for c in cuts) == 12
    assert overhead == 0 or len(cuts) == 1
