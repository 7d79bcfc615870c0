"""Batches of rows that differ: as many as their costs allow, like with like."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from raykit.engine.pipeline.blocks import Batch, num_rows, rows_of

CostOf = Callable[[dict[str, Any]], Any]


def weighed(batch: Batch, cost: CostOf | str) -> tuple[np.ndarray, list[float], list[tuple[int, BaseException]]]:
    """Order rows by rising cost: neighbours are alike, so little of a batch is padding.

    Args:
        batch: the rows.
        cost: a column, or a function of the row.

    Returns:
        The numbers of the rows by rising cost, what each costs, and the number of each row whose cost could not be told, with
        the reason.
    """
    costs: dict[int, float] = {}
    unknown: list[tuple[int, BaseException]] = []
    for at, row in enumerate(rows_of([(batch, 0, num_rows(batch))])):
        try:
            costs[at] = _cost_of(row, cost)
        except BaseException as exc:  # SystemExit too, which would end the process without a word
            unknown.append((at, exc))
    return np.array(sorted(costs, key=costs.__getitem__), dtype=int), sorted(costs.values()), unknown


def reach(costs: Sequence[float], start: int, *, most: int, max_cost: float) -> int:
    """Say up to which row a batch goes that begins at ``start``: ``most`` rows that cost ``max_cost``, or one that costs more."""
    stop, total = start + 1, costs[start]
    while stop < len(costs) and stop - start < most and total + costs[stop] <= max_cost:
        total += costs[stop]
        stop += 1
    return stop


def _cost_of(row: dict[str, Any], cost: CostOf | str) -> float:
    value = float(row[cost] if isinstance(cost, str) else cost(row))
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"a row's cost is {value}; it has to be a number of zero or more")
    return value
