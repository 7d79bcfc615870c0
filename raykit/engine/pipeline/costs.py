"""Batches of rows that differ: as many as their costs allow, like with like."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from raykit.engine.pipeline.blocks import Batch, num_rows, rows_of, slice_of

CostOf = Callable[[dict[str, Any]], Any]


def weighed(batch: Batch, cost: CostOf | str) -> tuple[Batch, list[float], list[tuple[Batch, Exception]]]:
    """Give rows and costs by rising cost: neighbours are alike, so little of a batch is padding.

    Args:
        batch: the rows.
        cost: a column, or a function of the row.

    Returns:
        The rows, what each costs, and apart from them each row whose cost could not be told, as a batch, with the reason.
    """
    costs: dict[int, float] = {}
    unknown = []
    for at, row in enumerate(rows_of([(batch, 0, num_rows(batch))])):
        try:
            costs[at] = _cost_of(row, cost)
        except Exception as exc:
            unknown.append((slice_of(batch, at, at + 1), exc))
    order = np.array(sorted(costs, key=costs.__getitem__), dtype=int)
    return {name: np.asarray(column)[order] for name, column in batch.items()}, sorted(costs.values()), unknown


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
