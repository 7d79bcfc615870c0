"""What a change of a stage's calls is worth, from a few calls that were made so."""

from __future__ import annotations

import pytest

from raykit.decisions import StageChange
from raykit.engine.pipeline.trials import Trial

CALL_S, ROW_S = 0.28, 0.004
LARGER = StageChange(stage="model", batch_size=32)


def trial(*rows: int) -> Trial:
    """Give a trial of batches of 32, where a call costs much and a row little, that began at batches of two."""
    return Trial(change=LARGER, row_s=CALL_S / 2 + ROW_S, calls=[(each, CALL_S + each * ROW_S) for each in rows])


def test_the_last_rows_of_a_span_do_not_make_a_larger_batch_look_dear() -> None:
    known = trial(32, 14, 32, 6, 32).relative
    assert known == pytest.approx((CALL_S / 32 + ROW_S) / (CALL_S / 2 + ROW_S))


def test_short_calls_are_waited_out_but_not_for_ever() -> None:
    assert trial(14, 14, 14).relative is None
    known = trial(*[14] * 9).relative
    assert known == pytest.approx((CALL_S / 14 + ROW_S) / (CALL_S / 2 + ROW_S))


def test_a_change_of_threads_counts_every_call() -> None:
    fewer = Trial(change=StageChange(stage="model", num_threads=1), row_s=0.1, calls=[(4, 0.2), (4, 0.2), (2, 0.1)])
    assert fewer.relative == pytest.approx(0.5)
