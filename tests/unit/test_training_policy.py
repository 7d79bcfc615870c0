from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raykit.decisions import End, Form, GiveUp, StandBy, Start
from raykit.engine.training.feed import Cut, epoch_order, global_batch, share, steps_per_epoch
from raykit.engine.training.rows import Rows, to_device
from raykit.errors import InputError
from raykit.policy.membership import Membership, ReplicaState, decide


def _now(*replicas, **given):
    return Membership(**{"min_replicas": 1, "num_slots": 2, "num_spares": 1, "replicas": replicas} | given)


def _ready(worker):
    return ReplicaState(replica=worker, ready=True)


def test_the_ranks_start_first_and_the_spare_when_they_have_a_world():
    assert decide(_now()) == [Start(num_ranks=2, num_spares=0)]
    assert decide(_now(_ready("w1"), _ready("w2"), world=("w1", "w2"))) == [Start(num_ranks=0, num_spares=1)]


def test_a_run_that_grows_starts_its_ranks_first_and_its_spare_when_they_are_ready():
    grows = _now(_ready("w1"), _ready("w2"), world=("w1", "w2"), num_slots=3)
    assert decide(grows) == [Start(num_ranks=1)]
    joins = ReplicaState(replica="w3", holds_slot=True)
    assert decide(replace(grows, replicas=(*grows.replicas, joins))) == []
    whole = replace(grows, replicas=(*grows.replicas, replace(joins, ready=True)), world=("w1", "w2", "w3"))
    assert decide(whole) == [Start(num_spares=1)]


def test_the_first_world_waits_for_every_rank_that_has_a_slot():
    assert decide(_now(_ready("w1"), ReplicaState(replica="w2"))) == []
    assert decide(_now(_ready("w1"), _ready("w2"))) == [Form(replicas=("w1", "w2"))]


def test_ranks_that_are_over_before_the_first_world_is_formed_are_its_ranks():
    over = replace(_ready("w1"), done=True)
    assert decide(_now(over, ReplicaState(replica="w2"))) == []
    assert decide(_now(over, replace(_ready("w2"), done=True))) == [Form(replicas=("w1", "w2"))]
    assert decide(_now(over, replace(_ready("w2"), done=True), world=("w1", "w2"))) == []


def test_survivors_answer_a_loss_at_once_in_their_order_and_a_ready_spare_joins_when_they_have_met():
    workers = (replace(_ready("w1"), lost=True), _ready("w2"), _ready("w3"), _ready("w4"))
    lost = _now(*workers, world=("w1", "w2", "w3"), num_slots=3)
    assert Form(replicas=("w2", "w3")) in decide(lost)
    shrunk = replace(lost, world=("w2", "w3"))
    assert not any(isinstance(each, Form) for each in decide(replace(shrunk, is_formed=False)))
    assert Form(replicas=("w2", "w3", "w4")) in decide(shrunk)


def test_a_ready_spare_takes_a_lost_rank_s_place_at_once_where_the_survivors_are_too_few():
    workers = (replace(_ready("w1"), lost=True), _ready("w2"), _ready("w3"))
    assert Form(replicas=("w2", "w3")) in decide(_now(*workers, world=("w1", "w2"), min_replicas=2))


def test_a_loss_without_a_spare_shrinks_the_world_and_another_worker_starts_when_it_stands():
    workers = (_ready("w1"), replace(_ready("w2"), lost=True))
    lost = _now(*workers, world=("w1", "w2"), num_spares=0)
    assert decide(lost) == [Form(replicas=("w1",))]
    assert decide(replace(lost, world=("w1",), is_formed=False)) == []
    assert decide(replace(lost, world=("w1",), is_settling=True)) == []
    assert decide(replace(lost, world=("w1",))) == [Start(num_ranks=1)]


def test_a_loss_in_a_world_that_is_being_made_and_leaves_too_few_starts_another_worker_at_once():
    workers = (_ready("w1"), replace(_ready("w2"), lost=True))
    assert decide(_now(*workers, world=("w1", "w2"), min_replicas=2, num_spares=0, is_formed=False)) == [Start(num_ranks=1)]


def test_a_smaller_size_lets_the_last_ranks_leave_at_a_commit_and_ends_them_when_the_others_have_met():
    ranks = [ReplicaState(replica=f"w{n}", ready=True, holds_slot=True) for n in (1, 2, 3)]
    spare = _ready("w4")
    shrink = _now(*ranks, spare, world=("w1", "w2", "w3"), num_slots=2)
    assert decide(shrink) == [Form(replicas=("w1", "w2"))]
    assert decide(replace(shrink, world=("w1", "w2"), is_formed=False)) == []
    assert decide(replace(shrink, world=("w1", "w2"))) == [End(replicas=("w3",))]


def test_ranks_whose_slots_are_lent_stand_by_without_them_and_join_again_when_a_slot_is_back():
    ranks = [ReplicaState(replica=f"w{n}", ready=True, holds_slot=True) for n in (1, 2, 3)]
    lent = _now(*ranks, world=("w1", "w2"), num_slots=2, num_spares=0, num_standing_by=1)
    assert decide(lent) == [StandBy(replicas=("w3",))]
    waits = replace(lent, replicas=(*ranks[:2], replace(ranks[2], holds_slot=False)))
    assert decide(waits) == []
    assert decide(replace(waits, num_slots=3, num_standing_by=0)) == [Form(replicas=("w1", "w2", "w3"))]


def test_who_has_left_gives_its_slot_before_the_others_have_met():
    ranks = [ReplicaState(replica=f"w{n}", ready=True, holds_slot=True) for n in (1, 2, 3)]
    leaves = _now(*ranks, world=("w1", "w2"), is_formed=False, num_slots=2, num_spares=0, num_standing_by=1)
    assert decide(leaves) == []
    assert decide(replace(leaves, replicas=(*ranks[:2], replace(ranks[2], aside=True)))) == [StandBy(replicas=("w3",))]


def test_who_has_a_slot_again_is_invited_though_the_others_have_not_met_without_it():
    ranks = [ReplicaState(replica=f"w{n}", ready=True, holds_slot=n < 3, aside=n == 3) for n in (1, 2, 3)]
    returns = _now(*ranks, world=("w1", "w2"), is_formed=False, num_slots=3, num_spares=0)
    assert decide(replace(returns, is_awaited=True)) == [Form(replicas=("w1", "w2", "w3"))]
    assert decide(returns) == [], "those who meet after a loss meet first"


def test_who_stands_by_is_ended_when_a_person_asks_for_fewer():
    ranks = [ReplicaState(replica=f"w{n}", ready=True, holds_slot=n < 3) for n in (1, 2, 3, 4)]
    fewer = _now(*ranks, world=("w1", "w2"), num_slots=2, num_spares=1, num_standing_by=0)
    assert decide(fewer) == [End(replicas=("w3",))]


def test_below_the_least_number_nothing_is_formed():
    workers = (_ready("w1"), replace(_ready("w2"), lost=True))
    decisions = decide(_now(*workers, world=("w1", "w2"), min_replicas=2, num_spares=0))
    assert not any(isinstance(decision, Form) for decision in decisions)


def test_ranks_that_lost_touch_though_nobody_died_meet_again_after_a_grace():
    workers = (_ready("w1"), _ready("w2"))
    whole = {"world": ("w1", "w2"), "num_spares": 0}
    assert decide(_now(*workers, **whole, broken_for_s=0.2)) == []
    assert decide(_now(*workers, **whole, broken_for_s=1.5)) == [Form(replicas=("w1", "w2"))]


def test_a_worker_that_dies_again_and_again_without_a_commit_ends_the_run():
    assert isinstance(decide(_now(losses_since_commit=6))[0], GiveUp)


def test_a_run_that_waits_forms_no_smaller_world_but_follows_a_person_who_makes_it_smaller():
    lost = _now(_ready("w1"), replace(_ready("w2"), lost=True), world=("w1", "w2"), on_loss="wait", num_spares=0)
    assert decide(lost) == [Start(num_ranks=1)]
    there = replace(lost, replicas=(*lost.replicas, _ready("w3")))
    assert decide(there) == [Form(replicas=("w1", "w3"))]
    assert Form(replicas=("w1",)) in decide(replace(lost, num_slots=1))


def test_a_run_that_stops_at_a_loss_lets_the_survivors_meet_once_more():
    lost = _now(_ready("w1"), replace(_ready("w2"), lost=True), world=("w1", "w2"), on_loss="stop")
    (conclude,) = decide(lost)
    assert (conclude.replicas, conclude.failed) == (("w1",), False)
    concluding = replace(lost, world=("w1",), is_concluding=True, is_formed=False)
    assert decide(concluding) == []
    assert isinstance(decide(replace(concluding, replicas=(replace(_ready("w1"), lost=True),)))[0], GiveUp)


def test_a_budget_of_losses_by_cause_or_in_all_ends_the_run_and_says_which():
    whole = _now(_ready("w1"), _ready("w2"), world=("w1", "w2"), losses={"hung": 2, "died": 3})
    for max_losses, words in (({"hung": 1}, "hung"), ({"": 4}, "5 workers")):
        (conclude,) = decide(replace(whole, max_losses=max_losses))
        assert conclude.failed
        assert words in conclude.reason
    assert decide(replace(whole, max_losses={"hung": 2, "": 5})) == [Start(num_spares=1)]


def test_who_is_silent_is_not_invited_until_it_is_heard_again():
    silent = replace(_ready("w2"), silent=True)
    broken = _now(_ready("w1"), silent, world=("w1", "w2"), num_spares=0, broken_for_s=1.5)
    assert decide(broken) == [Form(replicas=("w1",))]
    assert decide(_now(_ready("w1"), silent, world=("w1",), num_spares=0)) == []
    assert decide(_now(_ready("w1"), _ready("w2"), world=("w1",), num_spares=0)) == [Form(replicas=("w1", "w2"))]


def test_a_world_that_waits_for_a_commit_which_cannot_come_is_asked_for_again_at_once():
    shrinking = _now(_ready("w1"), _ready("w2"), world=("w1", "w2"), is_formed=False, num_spares=0)
    assert decide(shrinking) == []
    assert decide(replace(shrinking, must_hurry=True)) == [Form(replicas=("w1", "w2"))]


def test_when_one_is_done_only_those_in_the_last_step_meet_again():
    workers = (replace(_ready("w1"), done=True), _ready("w2"), replace(_ready("w3"), lost=True))
    assert decide(_now(*workers, world=("w1", "w2", "w3"), num_slots=3)) == [Form(replicas=("w2",))]


@given(st.integers(1, 300), st.integers(1, 64), st.integers(0, 5), st.data())
def test_every_row_is_seen_once_an_epoch_whatever_the_world_is_at_each_step(num_rows, batch_size, seed, data):
    seen = []
    for step in range(steps_per_epoch(num_rows, batch_size)):
        world_size = data.draw(st.integers(1, 7))
        batch = global_batch(num_rows, batch_size, seed, step)
        parts = [share(batch, rank, world_size) for rank in range(world_size)]
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        seen.extend(np.concatenate(parts).tolist())
    assert sorted(seen) == list(range(num_rows))


@given(st.integers(1, 200), st.integers(1, 6), st.integers(1, 4), st.booleans())
def test_the_weights_of_all_ranks_are_the_batch_and_no_rank_of_a_replica_with_rows_is_without(num_rows, replicas, group, shared):
    batch = np.arange(num_rows)
    cuts = [Cut(rank=rank, world_size=replicas * group, group_size=group, is_shared=shared) for rank in range(replicas * group)]
    assert sum(cut.weight(batch) for cut in cuts) == pytest.approx(num_rows)
    for cut in cuts:
        ours, mine = cut.of_replica(batch), cut.of(batch)
        assert (len(mine) > 0) == (len(ours) > 0)
        assert set(mine) <= set(ours)
    counted = [row for cut in cuts if cut.weight(batch) for row in cut.of(batch)]
    assert sorted(counted) == sorted(batch.tolist() * (group if shared else 1))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(0, 3))
def test_rows_stored_in_blocks_are_seen_once_an_epoch_and_each_block_is_read_once(blocks, epoch):
    order = epoch_order(sum(blocks), 0, epoch, tuple(blocks))
    assert sorted(order) == list(range(sum(blocks)))
    of_block = np.repeat(np.arange(len(blocks)), blocks)[order]
    spans = [np.flatnonzero(of_block == block) for block in range(len(blocks))]
    in_memory = max(sum(span[0] <= at <= span[-1] for span in spans) for at in range(len(order)))
    assert in_memory <= 4


def test_two_epochs_have_different_orders_and_the_same_seed_the_same():
    first, second = global_batch(100, 100, 0, 0), global_batch(100, 100, 0, 1)
    assert first.tolist() != second.tolist()
    assert first.tolist() == global_batch(100, 100, 0, 0).tolist()


def test_rows_come_as_the_form_of_the_data():
    at = np.array([2, 0])
    assert Rows({"x": np.arange(3), "name": ["a", "b", "c"]}).take(at)["x"].tolist() == [2, 0]
    assert [part.tolist() for part in Rows((np.arange(3), torch.arange(3) * 10)).take(at)] == [[2, 0], [20, 0]]
    assert Rows([{"x": 1.0}, {"x": 2.0}, {"x": 3.0}]).take(at)["x"].tolist() == [3.0, 1.0]
    assert Rows(torch.utils.data.TensorDataset(torch.arange(3))).take(at)[0].tolist() == [2, 0]


@pytest.mark.parametrize("data", [[], {"x": [1, 2], "y": [1]}, {"x": []}, 7, iter([1])])
def test_data_that_is_no_training_set_is_refused(data):
    with pytest.raises(InputError):
        Rows(data)


def test_a_batch_keeps_its_form_on_the_way_to_the_device():
    batch = {"x": torch.ones(2), "more": (torch.ones(1), ["text"])}
    moved = to_device(batch, torch.device("cpu"))
    assert moved["more"][1] == ["text"]
    assert isinstance(moved["more"], tuple)
