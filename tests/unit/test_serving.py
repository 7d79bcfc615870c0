"""How many replicas a service needs."""

from __future__ import annotations

import pytest

from raykit.policy.serving import HOLD_S, IDLE_S, Load, Steady, replicas_needed


def needed(*, rate_s=0.0, num_open=0, cost_s=0.1, idle_s=0.0, least=0, most=8, slo_s=1.0) -> int:
    return replicas_needed(
        Load(rate_s=rate_s, num_open=num_open, cost_s=cost_s, idle_s=idle_s), least=least, most=most, slo_s=slo_s
    )


def test_a_service_that_nobody_asked_yet_has_its_least():
    assert needed(idle_s=None) == 0
    assert needed(idle_s=None, least=2) == 2


def test_the_first_request_wants_a_replica_though_its_cost_is_not_known():
    assert needed(num_open=1, cost_s=None) == 1


@pytest.mark.parametrize(("rate_s", "count"), [(1, 1), (7, 1), (7.1, 2), (20, 3), (1000, 8)])
def test_replicas_are_at_work_for_no_more_than_seven_tenths_of_their_time(rate_s, count):
    assert needed(rate_s=rate_s) == count


def test_what_has_piled_up_is_answered_within_the_objective():
    assert needed(rate_s=1, num_open=35) == 4
    assert needed(rate_s=1, num_open=35, slo_s=7.0) == 1


def test_who_was_asked_of_late_keeps_a_replica():
    assert needed(idle_s=IDLE_S - 1) == 1
    assert needed(idle_s=IDLE_S + 1) == 0


def test_it_has_never_less_than_its_least_or_more_than_its_most():
    assert needed(rate_s=0.1, least=3) == 3
    assert needed(num_open=10_000, most=2) == 2


def test_less_is_believed_only_when_it_was_enough_for_a_while():
    steady = Steady()
    assert steady.take(0.0, 1) == 1
    assert steady.take(1.0, 4) == 4
    assert steady.take(1.0 + HOLD_S, 1) == 4
    assert steady.take(1.1 + HOLD_S, 1) == 1
