from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raykit.decisions import End, Form, GiveUp, Start
from raykit.engine.training.feed import Rows, global_batch, share, steps_per_epoch, to_device
from raykit.errors import InputError
from raykit.policy.membership import Membership, WorkerState, decide


def _now(*workers, **given):
    return Membership(**{"min_workers": 1, "num_slots": 2, "num_spares": 1, "workers": workers} | given)


def _ready(worker):
    return WorkerState(worker=worker, ready=True)


def test_the_ranks_start_first_and_the_spare_when_they_have_a_world():
    assert decide(_now()) == [Start(num_ranks=2, num_spares=0)]
    assert decide(_now(_ready("w1"), _ready("w2"), world=("w1", "w2"))) == [Start(num_ranks=0, num_spares=1)]


def test_the_first_world_waits_for_every_rank_that_has_a_slot():
    assert decide(_now(_ready("w1"), WorkerState(worker="w2"))) == []
    assert decide(_now(_ready("w1"), _ready("w2"))) == [Form(workers=("w1", "w2"))]


def test_survivors_answer_a_loss_at_once_in_their_order_and_a_ready_spare_joins_when_they_have_met():
    workers = (replace(_ready("w1"), lost=True), _ready("w2"), _ready("w3"), _ready("w4"))
    lost = _now(*workers, world=("w1", "w2", "w3"), num_slots=3)
    assert Form(workers=("w2", "w3")) in decide(lost)
    shrunk = replace(lost, world=("w2", "w3"))
    assert not any(isinstance(each, Form) for each in decide(replace(shrunk, is_formed=False)))
    assert Form(workers=("w2", "w3", "w4")) in decide(shrunk)


def test_a_ready_spare_takes_a_lost_rank_s_place_at_once_where_the_survivors_are_too_few():
    workers = (replace(_ready("w1"), lost=True), _ready("w2"), _ready("w3"))
    assert Form(workers=("w2", "w3")) in decide(_now(*workers, world=("w1", "w2"), min_workers=2))


def test_a_loss_without_a_spare_shrinks_the_world_while_another_worker_starts():
    workers = (_ready("w1"), replace(_ready("w2"), lost=True))
    assert decide(_now(*workers, world=("w1", "w2"), num_spares=0)) == [Start(num_ranks=1), Form(workers=("w1",))]


def test_a_smaller_size_lets_the_last_ranks_leave_at_a_commit_and_ends_them_when_the_others_have_met():
    ranks = [WorkerState(worker=f"w{n}", ready=True, holds_slot=True) for n in (1, 2, 3)]
    spare = _ready("w4")
    shrink = _now(*ranks, spare, world=("w1", "w2", "w3"), num_slots=2)
    assert decide(shrink) == [Form(workers=("w1", "w2"))]
    assert decide(replace(shrink, world=("w1", "w2"), is_formed=False)) == []
    assert decide(replace(shrink, world=("w1", "w2"))) == [End(workers=("w3",))]


def test_below_the_least_number_nothing_is_formed():
    workers = (_ready("w1"), replace(_ready("w2"), lost=True))
    decisions = decide(_now(*workers, world=("w1", "w2"), min_workers=2, num_spares=0))
    assert not any(isinstance(decision, Form) for decision in decisions)


def test_ranks_that_lost_touch_though_nobody_died_meet_again_after_a_grace():
    workers = (_ready("w1"), _ready("w2"))
    whole = {"world": ("w1", "w2"), "num_spares": 0}
    assert decide(_now(*workers, **whole, broken_for_s=0.2)) == []
    assert decide(_now(*workers, **whole, broken_for_s=1.5)) == [Form(workers=("w1", "w2"))]


def test_a_worker_that_dies_again_and_again_without_a_commit_ends_the_run():
    assert isinstance(decide(_now(losses_since_commit=6))[0], GiveUp)


def test_when_one_is_done_only_those_in_the_last_step_meet_again():
    workers = (replace(_ready("w1"), done=True), _ready("w2"), replace(_ready("w3"), lost=True))
    assert decide(_now(*workers, world=("w1", "w2", "w3"), num_slots=3)) == [Form(workers=("w2",))]


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
