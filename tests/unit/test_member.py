"""Members of a world, each in a thread of this process, with a rendezvous store and gloo of their own."""

import threading

import pytest
import torch

from raykit.engine.training.collective import Reducer
from raykit.engine.training.member import SMALL_STATE_BYTES
from raykit.engine.training.rendezvous import join_store
from tests.unit.worlds import World, joined


def test_all_begin_with_the_first_one_s_state():
    world = World("w1", "w2", "w3")
    world.publish(1, ("w1", "w2", "w3"))
    world.met("w1", "w2", "w3")
    assert world.stands("w1", "w2", "w3") == [(0, 0.0)] * 3
    assert [world.members[name].rank for name in ("w1", "w2", "w3")] == [0, 1, 2]


def test_where_survivors_disagree_on_the_step_the_furthest_wins_and_the_others_copy_it():
    world = World("w1", "w2", "w3")
    world.publish(1, ("w1", "w2", "w3"))
    world.met("w1", "w2", "w3")
    for name, step in (("w1", 29), ("w2", 30), ("w3", 29)):
        world.jobs[name].step, world.jobs[name].value = step, torch.tensor([float(step)])
    world.broke("w1", "w2", "w3")
    world.publish(2, ("w1", "w2", "w3"))
    world.met("w1", "w2", "w3")
    assert world.stands("w1", "w2", "w3") == [(30, 30.0)] * 3


def test_a_newcomer_takes_a_survivor_s_state_also_when_it_stands_at_a_later_step_of_its_own():
    world = World("w1", "w2")
    world.publish(1, ("w1",), to=["w1"])
    world.met("w1")
    world.jobs["w1"].step = 7
    world.jobs["w2"].step = 900
    world.publish(2, ("w2", "w1"))
    world.met("w1", "w2")
    assert world.stands("w1", "w2") == [(7, 0.0)] * 2


def test_who_missed_the_confirmation_of_a_replica_group_rolls_forward_when_another_has_committed():
    world = World("w1.0", "w1.1", "w2.0", "w2.1")
    names = tuple(world.members)
    world.publish(1, names, group_size=2)
    world.met(*names)
    for name in names:
        world.jobs[name].step, world.jobs[name].prepared = 4, True
    world.jobs["w2.0"].roll_forward()
    world.broke(*names)
    world.publish(2, names, group_size=2)
    world.met(*names)
    assert [world.jobs[name].step for name in names] == [5] * 4
    assert not any(world.jobs[name].prepared for name in names)


def test_a_step_that_nobody_committed_is_discarded_by_all():
    world = World("w1.0", "w1.1")
    world.publish(1, ("w1.0", "w1.1"), group_size=2)
    world.met("w1.0", "w1.1")
    for name in ("w1.0", "w1.1"):
        world.jobs[name].step, world.jobs[name].prepared = 4, True
    world.broke("w1.0", "w1.1")
    world.publish(2, ("w1.0", "w1.1"), group_size=2)
    world.met("w1.0", "w1.1")
    assert [world.jobs[name].step for name in ("w1.0", "w1.1")] == [4, 4]


def test_a_generation_that_is_published_while_another_is_being_entered_replaces_it():
    world = World("w1", "w2", "w3")
    world.publish(1, ("w1", "w2", "w3"), to=["w1", "w2"])
    threads = world.align("w1", "w2")
    world.publish(2, ("w1", "w2"), to=["w1"])  # w2 still waits for w3 in the first
    world.publish(3, ("w1", "w2"))
    joined(threads)
    assert world.observers["w1"].formed[-1] == (3, 0)
    assert world.members["w2"].generation == 3


def test_who_leaves_for_a_world_without_it_says_so_before_the_others_have_met():
    world = World("w1", "w2", "w3")
    world.publish(1, ("w1", "w2", "w3"), urgent=False)
    world.met("w1", "w2", "w3")
    world.publish(2, ("w1", "w2"), urgent=False)
    world.align("w3", agreed=True)
    assert world.observers["w3"].aside.get(timeout=20) == 2
    assert [world.members[name].generation for name in ("w1", "w2")] == [1, 1]
    world.met("w1", "w2", agreed=True)
    assert world.members["w1"].group.world_size == 2


def test_who_was_invited_and_is_not_any_more_says_so_before_it_has_met_anybody_and_who_never_was_says_nothing():
    world = World("w1", "w2", "w3")
    world.publish(1, ("w1",), urgent=False)
    world.met("w1")
    _, third = world.align("w2", "w3")
    world.publish(2, ("w1", "w2"), urgent=False)  # w1 enters at its next commit
    world.publish(3, ("w1",), urgent=False)
    assert world.observers["w2"].aside.get(timeout=20) == 3
    assert world.members["w1"].generation == 1
    world.publish(4, ("w1", "w3"), urgent=False)
    world.met("w1", agreed=True)
    joined([third])
    assert world.observers["w3"].formed == [(4, 0)]
    assert world.observers["w2"].aside.empty()
    assert world.observers["w3"].aside.empty()


def test_who_trains_meets_the_next_world_meanwhile_and_enters_it_when_all_have_come(until):
    world = World("w1", "w2", "w3")
    world.publish(1, ("w1", "w2"))
    world.met("w1", "w2")
    world.publish(2, ("w1", "w2", "w3"), urgent=False)
    first, second = world.members["w1"], world.members["w2"]
    assert not first.may_enter_next  # w3 has not come
    assert (first.generation, first.group.world_size) == (1, 2)
    third = world.align("w3")
    until(lambda: first.may_enter_next and second.may_enter_next)
    assert (first.generation, first.group.world_size) == (1, 2)
    assert world.observers["w3"].formed == []
    world.met("w1", "w2", agreed=True)
    joined(third)
    assert [world.observers[name].formed[-1] for name in world.members] == [(2, 0)] * 3
    assert world.stands("w1", "w2", "w3") == [(0, 0.0)] * 3


def test_a_world_that_is_met_and_replaced_before_it_is_entered_keeps_nobody_and_breaks_nothing(until):
    world = World("w1", "w2", "w3")
    world.publish(1, ("w1", "w2"))
    world.met("w1", "w2")
    third = world.align("w3")
    world.publish(2, ("w1", "w2", "w3"), urgent=False)
    until(lambda: world.members["w1"].may_enter_next and world.members["w2"].may_enter_next)
    world.publish(3, ("w1", "w2"), urgent=False)
    assert world.observers["w3"].aside.get(timeout=20) == 3
    until(lambda: world.members["w1"].may_enter_next and world.members["w2"].may_enter_next)
    world.met("w1", "w2", agreed=True)
    world.publish(4, ("w2", "w3", "w1"), urgent=False)
    until(lambda: world.members["w1"].may_enter_next and world.members["w2"].may_enter_next)
    world.met("w1", "w2", agreed=True)
    joined(third)
    assert [world.observers[name].formed[-1] for name in world.members] == [(4, 0)] * 3
    assert [world.observers[name].broken for name in ("w1", "w2")] == [[]] * 2


def test_a_world_that_nobody_met_ahead_is_left_for_an_urgent_one(until):
    world = World("w1", "w2", "w3")
    world.publish(1, ("w1", "w2"))
    world.met("w1", "w2")
    world.publish(2, ("w1", "w2", "w3"), urgent=False)  # w3 is gone
    world.publish(3, ("w1", "w2"))
    assert world.members["w1"].may_enter_next
    world.met("w1", "w2")
    assert [world.observers[name].formed[-1] for name in ("w1", "w2")] == [(3, 0)] * 2


def test_a_state_too_large_to_travel_before_all_goes_to_who_is_behind_alone():
    world = World("w1", "w2", "w3")
    world.publish(1, ("w1", "w2"))
    world.met("w1", "w2")
    for name in ("w1", "w2"):
        world.jobs[name].value, world.jobs[name].step = torch.full((SMALL_STATE_BYTES // 4 + 1,), 7.0), 5
    world.publish(2, ("w1", "w2", "w3"))
    world.met("w1", "w2", "w3")
    assert world.jobs["w3"].step == 5
    assert torch.equal(world.jobs["w3"].value, world.jobs["w1"].value)


def test_an_older_generation_that_comes_late_is_ignored():
    world = World("w1")
    world.publish(2, ("w1",))
    world.publish(1, ("w1", "gone"))
    world.met("w1")
    assert world.members["w1"].generation == 2


def test_a_world_whose_member_never_comes_is_given_up_when_a_newer_one_is_known():
    world = World("w1", "w2")
    world.publish(1, ("w1", "w2"))
    threads = world.align("w1")
    world.publish(2, ("w1",), to=["w1"])
    joined(threads)
    assert world.members["w1"].group.world_size == 1


def test_nobody_waits_for_who_has_come_and_gone_before_they_were_connected_once_a_newer_world_is_published(until):
    world = World("w1", "w2")
    keys = torch.distributed.PrefixStore("1/ranks", join_store(world.address, lambda: False))
    keys.set("device 1", "127.0.0.1 1")
    keys.add("arrived", 1)  # as w2 would, which never connects
    world.publish(1, ("w1", "w2"), to=["w1"])
    threads = world.align("w1")
    until(lambda: keys.add("arrived", 0) == 2)
    world.publish(2, ("w1",), to=["w1"])
    joined(threads)
    meeting = [each for each in threading.enumerate() if each.name == "raykit-meet"]
    assert meeting, "it was waited for"
    assert world.observers["w1"].formed == [(2, 0)]
    joined(meeting)


def test_ranks_enter_the_next_world_only_when_all_have_met_the_same(until):
    world = World("w1", "w2", "w3")
    world.publish(1, ("w1", "w2"))
    world.met("w1", "w2")
    newcomer = world.align("w3")
    world.publish(2, ("w1", "w2", "w3"), urgent=False)
    one, other = world.members["w1"], world.members["w2"]
    until(lambda: one.newcomers_have_met and other.newcomers_have_met)
    world.publish(3, ("w1", "w2"), to=["w2"], urgent=False)  # w1 has not heard of it
    assert not one.settle([one.propose(), other.propose()])
    assert not other.settle([one.propose(), other.propose()])
    world.publish(4, ("w1", "w3"), urgent=False)
    until(lambda: one.newcomers_have_met)
    proposals = [one.propose(), other.propose()]
    world.publish(5, ("w1", "w2", "w3"), urgent=False)  # they have settled what they enter first
    assert one.settle(proposals)
    assert other.settle(proposals)
    world.met("w1", agreed=True)
    joined(newcomer)
    assert world.observers["w1"].formed == [(1, 0), (4, 0)]
    world.publish(6, ())


def test_a_world_that_all_settled_on_and_that_failed_to_meet_is_told_of_once(until):
    world = World("w1")
    world.publish(1, ("w1",))
    world.met("w1")
    keys = torch.distributed.PrefixStore("2/ranks", join_store(world.address, lambda: False))
    keys.set("device 1", "127.0.0.1 1")
    keys.add("arrived", 1)  # as w2 would, which never connects
    world.publish(2, ("w1", "w2"), urgent=False)
    member, observer = world.members["w1"], world.observers["w1"]
    until(lambda: member.may_enter_next)
    assert member.settle([member.propose()])
    threads = world.align("w1", agreed=True)
    until(lambda: member.phase == "idle" or len(observer.broken) > 1)
    world.publish(3, ("w1",))
    joined(threads)
    assert observer.broken == [2]
    assert observer.formed == [(1, 0), (3, 0)]


@pytest.mark.parametrize("is_large", [False, True])
def test_a_newcomer_s_buckets_are_those_of_who_has_trained_before(is_large):
    world = World("w1", "w2")
    models = {name: _model(is_large) for name in world.members}
    reducers = {name: Reducer(list(model.parameters())) for name, model in models.items()}
    world.publish(1, ("w1",), to=["w1"])
    world.met("w1")
    _sums(world, reducers, models, "w1")  # DDP would have other buckets after this
    world.broke("w1")
    world.publish(2, ("w1", "w2"))
    world.met("w1", "w2")
    sums = _sums(world, reducers, models, "w1", "w2")
    alone = [parameter.grad.clone() for parameter in _model_after_backward(is_large).parameters()]
    for name in ("w1", "w2"):
        assert all(torch.allclose(one, 2 * other) for one, other in zip(sums[name], alone, strict=True))


def _model(is_large):
    torch.manual_seed(0)
    width = 800 if is_large else 8
    return torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.Linear(width, width), torch.nn.Linear(width, 2))


def _model_after_backward(is_large):
    model = _model(is_large)
    model(torch.ones(3, 4)).sum().backward()
    return model


def _sums(world, reducers, models, *names):
    """Reduce one backward pass of equal rows on these members, and give each one's gradients."""

    def step(name):
        models[name].zero_grad()
        reducers[name].begin(world.members[name].column, 1.0)
        models[name](torch.ones(3, 4)).sum().backward()
        reducers[name].finish(world.members[name].group, torch.zeros(1))
        reducers[name].write_back(1.0)

    threads = [threading.Thread(target=step, args=(name,), daemon=True) for name in names]
    for thread in threads:
        thread.start()
    joined(threads)
    return {name: [parameter.grad for parameter in models[name].parameters()] for name in names}
