import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raykit.policy.balance import Cost, Resources, StageLoad, decide, plan
from raykit.policy.bottleneck import StageTimes, words

CPU = Resources(num_cpus=1)


def _load(stage, work_s, num_replicas=1, **given):
    return StageLoad(**{"stage": stage, "needs": CPU, "num_replicas": num_replicas, "max_replicas": 12, "work_s": work_s} | given)


def _rate(loads, counts):
    return min(load.rate(counts[load.stage]) for load in loads)


def test_the_slowest_stage_gets_the_next_replica():
    loads = [_load("decode", 0.1), _load("model", 0.8), _load("write", 0.1)]
    assert plan(loads, [Resources(num_cpus=10)]) == {"decode": 1, "model": 8, "write": 1}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0.05, 5.0), min_size=2, max_size=4), st.integers(4, 12))
def test_no_other_way_to_share_the_cpus_is_faster(costs, num_cpus):
    loads = [_load(f"s{place}", cost) for place, cost in enumerate(costs)]
    ours = _rate(loads, plan(loads, [Resources(num_cpus=num_cpus)]))
    ways = itertools.product(range(1, num_cpus + 1), repeat=len(costs))
    best = max(min(load.rate(count) for load, count in zip(loads, way, strict=True)) for way in ways if sum(way) <= num_cpus)
    assert ours == pytest.approx(best)


def test_a_replica_stands_on_one_node_and_not_on_the_rests_of_two():
    half = Resources(num_gpus=0.75)
    loads = [_load("model", 1.0, needs=half)]
    assert plan(loads, [Resources(num_gpus=1), Resources(num_gpus=1), Resources(num_gpus=0.5)]) == {"model": 2}


def test_cpus_beside_the_last_gpu_of_a_node_are_left_to_who_needs_both():
    loads = [_load("decode", 1.0), _load("model", 1.0, needs=Resources(num_cpus=1, num_gpus=1))]
    assert plan(loads, [Resources(num_cpus=1, num_gpus=1), Resources(num_cpus=3, num_gpus=1)]) == {"decode": 2, "model": 2}


def test_a_gpu_stage_is_not_given_cpus_that_cannot_help_it():
    loads = [_load("decode", 0.5), _load("model", 2.0, needs=Resources(num_cpus=1, num_gpus=1))]
    assert plan(loads, [Resources(num_cpus=8, num_gpus=1)]) == {"decode": 1, "model": 1}


def test_a_stage_that_nobody_measured_keeps_what_it_has():
    assert plan([_load("a", 0.1), _load("b", None, 2)], [Resources(num_cpus=4)])["b"] == 2


def test_nobody_grows_before_the_first_rows_of_a_later_stage_are_through():
    nodes = [Resources(num_cpus=12)]
    assert decide([_load("a", 1.0), _load("b", None, is_awaited=True), _load("c", None)], nodes) == []
    assert {each.stage: each.num_replicas for each in decide([_load("a", 1.0), _load("b", 2.0), _load("c", None)], nodes)} == {
        "a": 4,
        "b": 7,
    }


def test_a_replica_that_is_lost_before_anything_is_known_of_its_stage_is_started_anew():
    loads = [_load("a", 1.0), _load("b", None, 0, is_awaited=True)]
    assert [(each.stage, each.num_replicas) for each in decide(loads, [Resources(num_cpus=12)])] == [("b", 1)]


QUARTER = Resources(num_cpus=0.25)


def _crowded(*loads, num_cpus):
    quarters = [_load(stage, 1.0, count, needs=QUARTER, **more) for stage, count, more in loads]
    return {each.stage: each.num_replicas for each in decide(quarters, [Resources(num_cpus=num_cpus)])}


def test_a_stage_whose_replica_finds_no_place_gets_that_of_one_that_others_can_spare():
    others = ("make", 2, {}), ("square", 2, {"min_replicas": 2})
    assert _crowded(*others, ("settle", 1, {"num_unplaced": 1}), num_cpus=1) == {"make": 1}
    assert _crowded(*others, ("settle", 2, {"num_unplaced": 2}), num_cpus=1) == {"make": 1, "settle": 1}


def test_where_there_is_not_room_for_the_least_of_all_each_stage_has_one():
    others = ("make", 1, {}), ("square", 2, {"min_replicas": 2})
    assert _crowded(*others, ("settle", 1, {"num_unplaced": 1}), num_cpus=0.75) == {"square": 1}


def test_what_finds_no_place_on_any_node_stays_asked_for():
    assert _crowded(("make", 1, {}), ("settle", 1, {"num_unplaced": 1}), num_cpus=0.25) == {}


def test_a_stage_whose_rows_are_through_gives_its_replicas_to_the_others():
    loads = [_load("a", 0.1, 3, is_over=True), _load("b", 1.0, 1)]
    assert {each.stage: each.num_replicas for each in decide(loads, [Resources(num_cpus=4)])} == {"a": 0, "b": 4}


def test_a_small_gain_moves_nothing_and_a_large_one_says_what_is_expected():
    nodes = [Resources(num_cpus=6)]
    assert decide([_load("a", 1.0, 3), _load("b", 1.02, 3)], nodes) == []
    grown, *_ = decide([_load("a", 0.1, 3), _load("b", 1.0, 3)], nodes)
    assert {each.stage for each in decide([_load("a", 0.1, 3), _load("b", 1.0, 3)], nodes)} == {"a", "b"}
    assert "b is slower" in grown.reason


def test_what_takes_longer_to_start_than_it_saves_is_not_started():
    loads, nodes = [_load("a", 0.1), _load("b", 1.0)], [Resources(num_cpus=4)]
    assert decide(loads, nodes, rows_left=10, start_s=60) == []
    assert decide(loads, nodes, rows_left=1000, start_s=60)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0.05, 5.0), min_size=1, max_size=5), st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_a_plan_once_carried_out_asks_for_nothing_more(costs, node_cpus):
    nodes = [Resources(num_cpus=cpus) for cpus in node_cpus]
    loads = [_load(f"s{place}", cost) for place, cost in enumerate(costs)]
    counts = plan(loads, nodes)
    assert sum(counts.values()) <= sum(node_cpus)
    if all(counts.values()):
        carried_out = [_load(load.stage, load.work_s, counts[load.stage]) for load in loads]
        assert decide(carried_out, nodes) == []


def test_the_cost_of_a_row_follows_a_stage_that_becomes_slow_within_three_calls():
    cost = Cost()
    for _ in range(30):
        cost.add(10, 1.0)
    assert cost.per_row_s == pytest.approx(0.1)
    for _ in range(3):
        cost.add(10, 10.0)
    assert cost.per_row_s == pytest.approx(1.0)


def test_the_cost_of_a_row_is_a_mean_where_few_rows_cost_most():
    cost = Cost()
    for place in range(32):
        cost.add(1, 73.0 if place % 8 == 7 else 0.2)
    assert cost.per_row_s == pytest.approx((73.0 + 7 * 0.2) / 8)
    assert Cost().per_row_s is None


def _times(busy=0.0, starved=0.0, blocked=0.0, *, has_waiting=False):
    return StageTimes(busy=busy, starved=starved, blocked=blocked, has_waiting=has_waiting)


def test_the_bottleneck_is_the_last_stage_with_work_before_those_that_starve():
    slow = _times(1.0, has_waiting=True)
    assert words([_times(0.2, blocked=0.8, has_waiting=True), slow, _times(0.2, starved=0.8)]) == (
        "buffered",
        "bottleneck",
        "starved",
    )


def test_a_starved_stage_is_not_blamed_and_a_slow_source_starves_them_all():
    assert words([_times(0.3, starved=0.7), _times(0.1, starved=0.9)]) == ("starved", "starved")


def test_stages_that_are_all_busy_are_balanced_but_for_the_one_that_holds_the_others():
    assert words([_times(1.0), _times(1.0)]) == ("balanced", "balanced")
    assert math.isinf(_load("a", None).rate(3))


def test_a_stage_that_lost_its_replicas_before_its_first_call_was_over_gets_its_least_again():
    known = StageLoad(stage="known", needs=CPU, num_replicas=1, work_s=0.1)
    lost = StageLoad(stage="lost", needs=CPU, num_replicas=0, min_replicas=2, max_replicas=3)
    assert plan([known, lost], [Resources(num_cpus=4)]) == {"known": 1, "lost": 2}
    assert [(each.stage, each.num_replicas) for each in decide([known, lost], [Resources(num_cpus=4)])] == [("lost", 2)]
