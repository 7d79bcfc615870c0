"""Batches of rows that differ."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import raykit as rk
from raykit.engine.pipeline.costs import reach, weighed
from raykit.errors import OptionError

COSTS = st.lists(st.floats(0, 100), min_size=1, max_size=50)


@given(COSTS, st.integers(1, 8), st.floats(1, 200))
def test_batches_hold_every_row_once_and_keep_to_both_limits(costs, most, max_cost):
    at = 0
    while at < len(costs):
        stop = reach(costs, at, most=most, max_cost=max_cost)
        assert at < stop <= at + most
        assert stop == at + 1 or sum(costs[at:stop]) <= max_cost * (1 + 1e-9)
        at = stop
    assert at == len(costs)


def test_a_batch_takes_as_many_rows_as_its_limits_allow():
    assert reach([1, 2, 3, 4], 0, most=8, max_cost=6) == 3
    assert reach([1, 2, 3, 4], 0, most=2, max_cost=6) == 2


def test_rows_go_by_rising_cost_and_one_whose_cost_is_unknown_stands_apart_with_the_reason():
    batch = {"seconds": np.array([3.0, 1.0, float("nan"), 2.0]), "file": np.array(["c", "a", "?", "b"])}
    numbers, costs, unknown = weighed(batch, "seconds")
    assert list(batch["file"][numbers]) == ["a", "b", "c"]
    assert costs == [1.0, 2.0, 3.0]
    (number, reason), *none = unknown
    assert batch["file"][number] == "?"
    assert "nan" in str(reason)
    assert not none


def test_a_cost_may_be_a_function_of_the_row():
    texts = np.array(["long", "a"], dtype=object)
    assert weighed({"text": texts}, lambda row: len(row["text"]))[1] == [1.0, 4.0]


@pytest.mark.parametrize(
    "options", [{"cost": "seconds"}, {"max_cost": 60}, {"cost": "x", "max_cost": 60}, {"cost": "x", "max_cost": 0, "batch": 2}]
)
def test_a_cost_wants_a_limit_and_a_batch(options):
    with pytest.raises(OptionError, match="cost"):
        rk.stage(**options)(print_row)


def print_row(row):
    return row
