"""When a cluster that is paid for is given back."""

from dataclasses import replace

import pytest

from raykit.decisions import SuspendCluster, WarnSuspend
from raykit.engine.guard import num_paid, use_of
from raykit.events import GpuUse, NodeSampled
from raykit.policy.guard import Use, decide, decide_on_cost, idle_since
from raykit.views import ClusterView, NodeView

IDLE = Use(num_runs=0, num_slots_held=0.0)
LOW = 0.05


@pytest.mark.parametrize(
    "use",
    [
        Use(num_runs=1, num_slots_held=0.0),
        Use(num_runs=0, num_slots_held=0.5),
        Use(num_runs=0, num_slots_held=None),
    ],
)
def test_a_run_a_slot_and_what_is_not_known_count_as_use(use):
    assert not use.idle_words()
    assert not use.idle_words(LOW), "no GPU is known here"
    assert idle_since(100.0, "", now_unix_s=200.0) is None


@pytest.mark.parametrize(
    ("utilization", "words"), [(0.0, "no GPU was used 5 %"), (0.049, "no GPU was used 5 %"), (0.05, ""), (None, "")]
)
def test_gpus_that_are_held_and_hardly_used_are_idle_where_it_was_asked(utilization, words):
    held = Use(num_runs=1, num_slots_held=2.0, gpu_utilization=utilization)
    assert held.idle_words(LOW) == words
    assert not held.idle_words()


def test_idleness_begins_when_it_is_first_seen_and_lasts_while_nothing_is_used():
    since = idle_since(None, "nothing ran", now_unix_s=100.0)
    assert since == 100.0
    assert idle_since(since, "nothing ran", now_unix_s=160.0) == 100.0


def test_half_of_the_time_passes_in_peace_then_comes_a_warning_then_the_end():
    words = IDLE.idle_words()
    assert decide(None, words, idle_s=600, now_unix_s=5000.0) is None
    assert decide(1000.0, words, idle_s=600, now_unix_s=1299.0) is None
    assert decide(1000.0, words, idle_s=600, now_unix_s=1400.0) == WarnSuspend(left_s=200.0, reason="nothing ran for 7 min")
    assert decide(1000.0, words, idle_s=600, now_unix_s=1600.0) == SuspendCluster(reason="nothing ran for 10 min (--idle)")


def test_a_run_that_comes_after_the_warning_ends_it():
    since = idle_since(1000.0, Use(num_runs=1, num_slots_held=1.0).idle_words(), now_unix_s=1500.0)
    assert decide(since, "", idle_s=600, now_unix_s=1500.0) is None
    later = idle_since(since, IDLE.idle_words(), now_unix_s=1590.0)
    assert decide(later, IDLE.idle_words(), idle_s=600, now_unix_s=1600.0) is None


def test_what_a_cluster_has_cost_ends_it_at_its_budget_and_is_told_before():
    assert decide_on_cost(79.0, budget=100, cost_per_h=10) is None
    assert decide_on_cost(90.0, budget=100, cost_per_h=10) == WarnSuspend(left_s=3600.0, reason="it has cost 90.00 of 100")
    assert decide_on_cost(90.0, budget=100, cost_per_h=0) is None, "it has no nodes that cost"
    assert decide_on_cost(100.01, budget=100, cost_per_h=10) == SuspendCluster(reason="it has cost 100.01 (--budget 100)")


@pytest.mark.parametrize(
    ("gpus", "busiest"),
    [((0.1, 0.7), 0.7), ((0.0, 0.0), 0.0), ((0.0, None), None), ((), None)],
)
def test_the_busiest_gpu_is_known_when_all_are(gpus, busiest):
    used = tuple(GpuUse(gpu=str(at), utilization=each) for at, each in enumerate(gpus))
    use = NodeSampled(node="a", num_cpus=0, memory_used_bytes=0, memory_bytes=1, gpus=used)
    nodes = (
        NodeView(node="a", alive=True, num_cpus=8, num_gpus=2, use=use),
        NodeView(node="b", alive=True, num_cpus=8, num_gpus=0),
        NodeView(node="c", alive=False, num_cpus=8, num_gpus=2),
    )
    view = ClusterView(
        name="lab",
        simulated_gpus=False,
        nodes=nodes,
        num_cpus=16,
        num_cpus_free=15,
        num_gpus=2,
        num_gpus_free=0,
        object_store_bytes=0,
    )
    assert use_of(view, 1) == Use(num_runs=1, num_slots_held=3.0, gpu_utilization=busiest)
    unseen = replace(view, nodes=(replace(nodes[0], use=None), *nodes[1:]))
    assert use_of(unseen, 1).gpu_utilization is None
    assert (num_paid(view, is_head_paid=True), num_paid(view, is_head_paid=False)) == (2, 1)
    assert use_of(None, 0) == Use(num_runs=0, num_slots_held=None)
