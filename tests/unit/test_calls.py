"""How many rows a call of a replica takes."""

from __future__ import annotations

import pytest

from raykit.engine.pipeline.calls import Way


@pytest.mark.parametrize(
    ("way", "row_s", "rows"),
    [
        (Way(batch_size=None, concurrency=1), 0.01, 20),
        (Way(batch_size=None, concurrency=1), 3.0, 1),
        (Way(batch_size=8, concurrency=1), 0.01, 16),
        (Way(batch_size=8, concurrency=1), 3.0, 8),
        (Way(batch_size=None, concurrency=16), 0.123 / 16, 16),  # 26 rows would take two rounds, the second of ten rows
        (Way(batch_size=None, concurrency=16), 0.05 / 16, 64),
        (Way(batch_size=None, concurrency=16), 3.0, 16),
    ],
)
def test_a_call_is_made_of_whole_rounds(way: Way, row_s: float, rows: int) -> None:
    assert way.rows_of_call(row_s) == rows


def test_the_first_call_of_a_stage_is_as_small_as_can_be() -> None:
    assert Way(batch_size=None, concurrency=16).rows_of_call(None) == 1
    assert Way(batch_size=8, concurrency=1).rows_of_call(None) == 8
