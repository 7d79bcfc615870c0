"""When a cluster that nobody uses is given back."""

import pytest

from raykit.decisions import SuspendCluster, WarnIdle
from raykit.policy.idle import Use, decide, idle_since

IDLE = Use(num_runs=0, num_slots_held=0.0)


@pytest.mark.parametrize(
    "use",
    [
        Use(num_runs=1, num_slots_held=0.0),
        Use(num_runs=0, num_slots_held=0.5),
        Use(num_runs=0, num_slots_held=None),
    ],
)
def test_a_run_a_slot_and_what_is_not_known_count_as_use(use):
    assert idle_since(100.0, use, now_unix_s=200.0) is None


def test_idleness_begins_when_it_is_first_seen_and_lasts_while_nothing_is_used():
    since = idle_since(None, IDLE, now_unix_s=100.0)
    assert since == 100.0
    assert idle_since(since, IDLE, now_unix_s=160.0) == 100.0


def test_half_of_the_time_passes_in_peace_then_comes_a_warning_then_the_end():
    assert decide(None, idle_s=600, now_unix_s=5000.0) is None
    assert decide(1000.0, idle_s=600, now_unix_s=1299.0) is None
    assert decide(1000.0, idle_s=600, now_unix_s=1400.0) == WarnIdle(left_s=200.0)
    assert decide(1000.0, idle_s=600, now_unix_s=1600.0) == SuspendCluster(reason="nothing ran for 10 min (--idle)")


def test_a_run_that_comes_after_the_warning_ends_it():
    since = idle_since(1000.0, Use(num_runs=1, num_slots_held=1.0), now_unix_s=1500.0)
    assert decide(since, idle_s=600, now_unix_s=1500.0) is None
    assert decide(idle_since(since, IDLE, now_unix_s=1590.0), idle_s=600, now_unix_s=1600.0) is None
