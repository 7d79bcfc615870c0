"""How many replicas a service needs."""

from __future__ import annotations

import math

import pytest

from raykit.policy.serving import COLD, WARM, Calls, Cost, Load, Steady, replicas_needed


def needed(*, rate_s=0.0, num_open=0, capacity_s=10.0, idle_s=0.0, least=0, most=8, slo_s=1.0) -> int:
    load = Load(rate_s=rate_s, num_open=num_open, idle_s=idle_s)
    return replicas_needed(load, capacity_s=capacity_s, least=least, most=most, slo_s=slo_s, patience=COLD)


def test_a_service_that_nobody_asked_yet_has_its_least():
    assert needed(idle_s=None) == 0
    assert needed(idle_s=None, least=2) == 2


def test_the_first_request_wants_a_replica_though_its_cost_is_not_known():
    assert needed(num_open=1, capacity_s=math.inf) == 1


@pytest.mark.parametrize(("rate_s", "count"), [(1, 1), (7, 1), (7.1, 2), (20, 3), (1000, 8)])
def test_replicas_are_at_work_for_no_more_than_seven_tenths_of_their_time(rate_s, count):
    assert needed(rate_s=rate_s) == count


def test_what_has_piled_up_is_answered_within_the_objective():
    assert needed(rate_s=1, num_open=35) == 4
    assert needed(rate_s=1, num_open=35, slo_s=7.0) == 1


def test_who_was_asked_of_late_keeps_a_replica():
    assert needed(idle_s=COLD.last_s - 1) == 1
    assert needed(idle_s=COLD.last_s + 1) == 0


def test_it_has_never_less_than_its_least_or_more_than_its_most():
    assert needed(rate_s=0.1, least=3) == 3
    assert needed(num_open=10_000, most=2) == 2


def test_less_is_believed_only_when_it_was_enough_for_a_while():
    steady = Steady()
    assert steady.take(0.0, 1, COLD) == 1
    assert steady.take(1.0, 4, COLD) == 4
    assert steady.take(1.0 + COLD.hold_s, 1, COLD) == 4
    assert steady.take(1.1 + COLD.hold_s, 1, COLD) == 1


def calls(*made: tuple[int, float]) -> Calls:
    found = Calls()
    for requests, busy_s in made:
        found = found.with_call(requests, busy_s)
    return found


def test_the_cost_of_a_call_and_of_a_request_is_learned_from_calls_of_several_lengths():
    cost = calls((1, 0.11), (4, 0.14), (8, 0.18)).cost
    assert (cost.call_s, cost.request_s) == pytest.approx((0.1, 0.01))


def test_of_calls_that_are_all_alike_a_larger_one_is_thought_to_take_as_long_as_its_requests_one_by_one():
    assert calls((2, 0.1), (2, 0.1)).cost == Cost(call_s=0.0, request_s=0.05)


def test_noise_makes_no_cost_negative():
    falling = calls((1, 0.2), (8, 0.1)).cost
    assert falling.request_s == 0
    rising = calls((1, 0.0), (8, 0.8)).cost
    assert rising.call_s >= 0
    assert Calls().cost is None


def test_older_calls_count_less_and_what_was_counted_is_taken_away():
    both = calls((1, 0.1)).plus(calls((1, 0.3)), times=0.5)
    assert both.busy_s == pytest.approx(0.25)
    assert both.plus(both, times=-1).num == 0


@pytest.mark.parametrize(
    ("cost", "slo_s", "capacity_s"),
    [
        (Cost(call_s=0.1, request_s=0.0), 0.25, 80.0),  # a full batch fits twice
        (Cost(call_s=0.05, request_s=0.025), 0.25, 3 / 0.125),  # three requests fit
        (Cost(call_s=1.0, request_s=0.1), 0.25, 1 / 1.1),  # not even one does: it is answered as soon as can be
        (Cost(call_s=0.0, request_s=0.0), 0.25, math.inf),
    ],
)
def test_a_replica_can_answer_what_its_batches_hold_as_far_as_two_calls_fit_the_objective(cost, slo_s, capacity_s):
    assert cost.capacity_s(batch_size=8, slo_s=slo_s) == pytest.approx(capacity_s)


def test_a_request_that_takes_longer_than_the_objective_wants_no_more_than_one():
    asked = Load(rate_s=0.1, num_open=1, idle_s=0.0)
    assert replicas_needed(asked, capacity_s=0.5, least=0, most=8, slo_s=0.2, patience=COLD) == 1


def test_of_requests_that_outlast_what_is_held_those_that_are_open_say_how_many_are_needed():
    burst_is_over = Load(rate_s=10.0, num_open=1, idle_s=0.3)
    for capacity_s, count in ((2.0, 1), (100.0, 1), (12.0, 2)):
        asked = {"capacity_s": capacity_s, "least": 0, "most": 8, "slo_s": 1.0}
        assert replicas_needed(burst_is_over, **asked, patience=WARM) == count
    assert replicas_needed(burst_is_over, capacity_s=2.0, least=0, most=8, slo_s=1.0, patience=COLD) == 8


def kept(steady: Steady, pauses_s: list[float], *, need_s: float = 1.0, tick_s: float = 0.01) -> float:
    """Let one more replica be needed between pauses; give the mean time for which it was kept in the last ones."""
    at_s, kept_s, counted = 0.0, 0.0, pauses_s[len(pauses_s) // 2 :]
    for number, pause_s in enumerate(pauses_s):
        for needed, lasts_s in ((2, need_s), (1, pause_s)):
            end_s = at_s + lasts_s
            while at_s < end_s:
                taken = steady.take(at_s, needed, WARM)
                assert taken >= needed
                kept_s += tick_s * (taken > needed) * (number >= len(pauses_s) - len(counted))
                at_s += tick_s
    return kept_s / len(counted)


def test_what_will_not_be_needed_soon_is_given_back_at_once_and_what_will_be_is_kept():
    assert kept(Steady(), [3.0] * 30) == pytest.approx(0.0, abs=0.011)
    short_s = WARM.change_s / 2
    assert kept(Steady(), [short_s] * 30) == pytest.approx(short_s, abs=0.011)


def test_where_pauses_are_short_or_long_a_replica_is_kept_for_the_short_ones_if_there_are_enough_of_them():
    short_s = 0.05
    assert kept(Steady(), [short_s, short_s, short_s, 5.0] * 20) == pytest.approx(short_s, abs=0.012)
    assert kept(Steady(), [short_s, 5.0, 5.0, 5.0] * 20) == pytest.approx(0.0, abs=0.012)


def test_what_is_learned_of_pauses_is_forgotten_when_others_come():
    steady = Steady()
    assert kept(steady, [5.0] * 40) == pytest.approx(0.0, abs=0.011)
    assert kept(steady, [0.05] * 80) == pytest.approx(0.05, abs=0.011)


def test_nothing_is_learned_where_a_replica_would_have_to_be_built():
    steady = Steady()
    for second in range(0, 1000, 20):
        assert steady.take(second, 2, COLD) == 2
        assert steady.take(second + 9, 1, COLD) == 2
        assert steady.take(second + 19.5, 1, COLD) == 1


def test_what_is_back_at_once_is_given_back_soon():
    steady = Steady()
    assert steady.take(0.0, 4, WARM) == 4
    assert steady.take(0.1 + WARM.hold_s, 1, WARM) == 1
    gone = Load(rate_s=0.0, num_open=0, idle_s=WARM.last_s + 0.1)
    assert replicas_needed(gone, capacity_s=10.0, least=0, most=4, slo_s=1.0, patience=WARM) == 0
