"""Members of a world, each in a thread of this process, with a rendezvous store and gloo of their own."""

import queue
import random
import threading
import time
from collections import Counter

import pytest
import torch

from raykit.engine.training.checkpoint import Checkpoints
from raykit.engine.training.collective import Reducer
from raykit.engine.training.job import Job, Surroundings
from raykit.engine.training.member import SMALL_STATE_BYTES, Member
from raykit.engine.training.rendezvous import join_store, open_store
from raykit.engine.training.state import Stateful
from raykit.engine.training.world import Generation
from raykit.errors import InputError
from raykit.spec.training import interval

HOST = "127.0.0.1"


class _Job:
    """A model of one number; its value tells whose state it is."""

    num_parts_done = num_parts_held = 0

    def __init__(self, value, step=0):
        self.value, self.step, self.prepared = torch.tensor([float(value)]), step, False

    def roll_forward(self):
        self.step, self.prepared = self.step + 1, False

    def discard(self):
        self.prepared = False

    def state(self):
        return {"value": self.value, "step": self.step}

    def adopt(self, state):
        self.value, self.step = state["value"].clone(), state["step"]

    def adopt_kept(self):
        pass

    def before_leave(self):
        pass


class _Untold:
    def emit(self, *_):
        pass

    def sample(self, *_):
        pass


class _Observer:
    def __init__(self):
        self.formed, self.broken, self.aside = [], [], queue.SimpleQueue()

    def is_ready(self):
        pass

    def has_formed(self, generation, step):
        self.formed.append((generation.number, step))

    def has_broken(self, generation, reason):
        self.broken.append(generation)

    def stands_aside(self, generation):
        self.aside.put(generation)

    def has_left(self):
        pass


class _World:
    """Members by name; each aligns in a thread."""

    def __init__(self, *names):
        self.observers = {name: _Observer() for name in names}
        self.members = {name: Member(name, torch.device("cpu"), HOST, self.observers[name]) for name in names}
        self.jobs = {name: _Job(place) for place, name in enumerate(names)}
        self._store, self.address = open_store(HOST)

    def publish(self, number, workers, to=None, *, urgent=True, group_size=1):
        generation = Generation(number=number, workers=workers, store=self.address, urgent=urgent, group_size=group_size)
        for name in to or self.members:
            self.members[name].assign(generation)

    def align(self, *names, agreed=False):
        threads = [
            threading.Thread(target=self.members[name].align, args=(self.jobs[name],), kwargs={"agreed": agreed}, daemon=True)
            for name in names
        ]
        for thread in threads:
            thread.start()
        return threads

    def met(self, *names, agreed=False):
        _join(self.align(*names, agreed=agreed))

    def broke(self, *names):
        for name in names:
            self.members[name].broke("a peer is gone")

    def stands(self, *names):
        return [(self.jobs[name].step, float(self.jobs[name].value)) for name in names]


def _join(threads):
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), "a member waits for ever"


def test_all_begin_with_the_first_one_s_state():
    world = _World("w1", "w2", "w3")
    world.publish(1, ("w1", "w2", "w3"))
    world.met("w1", "w2", "w3")
    assert world.stands("w1", "w2", "w3") == [(0, 0.0)] * 3
    assert [world.members[name].rank for name in ("w1", "w2", "w3")] == [0, 1, 2]


def test_where_survivors_disagree_on_the_step_the_furthest_wins_and_the_others_copy_it():
    world = _World("w1", "w2", "w3")
    world.publish(1, ("w1", "w2", "w3"))
    world.met("w1", "w2", "w3")
    for name, step in (("w1", 29), ("w2", 30), ("w3", 29)):
        world.jobs[name].step, world.jobs[name].value = step, torch.tensor([float(step)])
    world.broke("w1", "w2", "w3")
    world.publish(2, ("w1", "w2", "w3"))
    world.met("w1", "w2", "w3")
    assert world.stands("w1", "w2", "w3") == [(30, 30.0)] * 3


def test_a_newcomer_takes_a_survivor_s_state_also_when_it_stands_at_a_later_step_of_its_own():
    world = _World("w1", "w2")
    world.publish(1, ("w1",), to=["w1"])
    world.met("w1")
    world.jobs["w1"].step = 7
    world.jobs["w2"].step = 900
    world.publish(2, ("w2", "w1"))
    world.met("w1", "w2")
    assert world.stands("w1", "w2") == [(7, 0.0)] * 2


def test_who_missed_the_confirmation_of_a_replica_group_rolls_forward_when_another_has_committed():
    world = _World("w1.0", "w1.1", "w2.0", "w2.1")
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
    world = _World("w1.0", "w1.1")
    world.publish(1, ("w1.0", "w1.1"), group_size=2)
    world.met("w1.0", "w1.1")
    for name in ("w1.0", "w1.1"):
        world.jobs[name].step, world.jobs[name].prepared = 4, True
    world.broke("w1.0", "w1.1")
    world.publish(2, ("w1.0", "w1.1"), group_size=2)
    world.met("w1.0", "w1.1")
    assert [world.jobs[name].step for name in ("w1.0", "w1.1")] == [4, 4]


def test_a_generation_that_is_published_while_another_is_being_entered_replaces_it():
    world = _World("w1", "w2", "w3")
    world.publish(1, ("w1", "w2", "w3"), to=["w1", "w2"])
    threads = world.align("w1", "w2")
    world.publish(2, ("w1", "w2"), to=["w1"])  # w2 still waits for w3 in the first
    world.publish(3, ("w1", "w2"))
    _join(threads)
    assert world.observers["w1"].formed[-1] == (3, 0)
    assert world.members["w2"].generation == 3


def test_who_leaves_for_a_world_without_it_says_so_before_the_others_have_met():
    world = _World("w1", "w2", "w3")
    world.publish(1, ("w1", "w2", "w3"), urgent=False)
    world.met("w1", "w2", "w3")
    world.publish(2, ("w1", "w2"), urgent=False)
    world.align("w3", agreed=True)
    assert world.observers["w3"].aside.get(timeout=20) == 2
    assert [world.members[name].generation for name in ("w1", "w2")] == [1, 1]
    world.met("w1", "w2", agreed=True)
    assert world.members["w1"].group.world_size == 2


def test_who_was_invited_and_is_not_any_more_says_so_before_it_has_met_anybody_and_who_never_was_says_nothing():
    world = _World("w1", "w2", "w3")
    world.publish(1, ("w1",), urgent=False)
    world.met("w1")
    _, third = world.align("w2", "w3")
    world.publish(2, ("w1", "w2"), urgent=False)  # w1 enters at its next commit
    world.publish(3, ("w1",), urgent=False)
    assert world.observers["w2"].aside.get(timeout=20) == 3
    assert world.members["w1"].generation == 1
    world.publish(4, ("w1", "w3"), urgent=False)
    world.met("w1", agreed=True)
    _join([third])
    assert world.observers["w3"].formed == [(4, 0)]
    assert world.observers["w2"].aside.empty()
    assert world.observers["w3"].aside.empty()


def test_who_trains_meets_the_next_world_meanwhile_and_enters_it_when_all_have_come(until):
    world = _World("w1", "w2", "w3")
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
    _join(third)
    assert [world.observers[name].formed[-1] for name in world.members] == [(2, 0)] * 3
    assert world.stands("w1", "w2", "w3") == [(0, 0.0)] * 3


def test_a_world_that_is_met_and_replaced_before_it_is_entered_keeps_nobody_and_breaks_nothing(until):
    world = _World("w1", "w2", "w3")
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
    _join(third)
    assert [world.observers[name].formed[-1] for name in world.members] == [(4, 0)] * 3
    assert [world.observers[name].broken for name in ("w1", "w2")] == [[]] * 2


def test_a_world_that_nobody_met_ahead_is_left_for_an_urgent_one(until):
    world = _World("w1", "w2", "w3")
    world.publish(1, ("w1", "w2"))
    world.met("w1", "w2")
    world.publish(2, ("w1", "w2", "w3"), urgent=False)  # w3 is gone
    world.publish(3, ("w1", "w2"))
    assert world.members["w1"].may_enter_next
    world.met("w1", "w2")
    assert [world.observers[name].formed[-1] for name in ("w1", "w2")] == [(3, 0)] * 2


def test_a_state_too_large_to_travel_before_all_goes_to_who_is_behind_alone():
    world = _World("w1", "w2", "w3")
    world.publish(1, ("w1", "w2"))
    world.met("w1", "w2")
    for name in ("w1", "w2"):
        world.jobs[name].value, world.jobs[name].step = torch.full((SMALL_STATE_BYTES // 4 + 1,), 7.0), 5
    world.publish(2, ("w1", "w2", "w3"))
    world.met("w1", "w2", "w3")
    assert world.jobs["w3"].step == 5
    assert torch.equal(world.jobs["w3"].value, world.jobs["w1"].value)


def test_an_older_generation_that_comes_late_is_ignored():
    world = _World("w1")
    world.publish(2, ("w1",))
    world.publish(1, ("w1", "gone"))
    world.met("w1")
    assert world.members["w1"].generation == 2


def test_a_world_whose_member_never_comes_is_given_up_when_a_newer_one_is_known():
    world = _World("w1", "w2")
    world.publish(1, ("w1", "w2"))
    threads = world.align("w1")
    world.publish(2, ("w1",), to=["w1"])
    _join(threads)
    assert world.members["w1"].group.world_size == 1


def test_nobody_waits_for_who_has_come_and_gone_before_they_were_connected_once_a_newer_world_is_published(until):
    world = _World("w1", "w2")
    keys = torch.distributed.PrefixStore("1/ranks", join_store(world.address, lambda: False))
    keys.set("device 1", "127.0.0.1 1")
    keys.add("arrived", 1)  # as w2 would, which never connects
    world.publish(1, ("w1", "w2"), to=["w1"])
    threads = world.align("w1")
    until(lambda: keys.add("arrived", 0) == 2)
    world.publish(2, ("w1",), to=["w1"])
    _join(threads)
    meeting = [each for each in threading.enumerate() if each.name == "raykit-meet"]
    assert meeting, "it was waited for"
    assert world.observers["w1"].formed == [(2, 0)]
    _join(meeting)


def test_ranks_enter_the_next_world_only_when_all_have_met_the_same(until):
    world = _World("w1", "w2", "w3")
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
    _join(newcomer)
    assert world.observers["w1"].formed == [(1, 0), (4, 0)]
    world.publish(6, ())


def test_a_world_that_all_settled_on_and_that_failed_to_meet_is_told_of_once(until):
    world = _World("w1")
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
    _join(threads)
    assert observer.broken == [2]
    assert observer.formed == [(1, 0), (3, 0)]


def test_a_rank_whose_slot_is_given_away_computes_nothing_more_though_the_others_have_not_heard_of_the_next_world(tmp_path):
    world, alone = _World("w1", "w2"), _World("w1")
    passes = {"w1": [], "w2": []}
    came = threading.Event()

    def hear(name, step):
        passes[name].append(step)
        if name == "w2":
            came.set()
        if step == 1:
            came.wait(20)
        if name == "w2":
            world.publish(2, ("w1",), to=["w2"], urgent=False)
        if (name, step) == ("w1", 4):
            world.publish(2, ("w1",), to=["w1"], urgent=False)

    learned = _learn(world, tmp_path, hear)
    world.publish(3, ("w1",), to=["w2"])
    assert len(passes["w2"]) == 1
    assert Counter(passes["w1"] + passes["w2"]) == dict.fromkeys(range(6), 4)
    assert learned == pytest.approx(_learn(alone, tmp_path / "alone", lambda *_: None), rel=1e-12)


def test_a_rank_that_has_its_slot_back_before_the_step_s_end_takes_part_in_it_again(tmp_path, until):
    world, passes, is_aside = _World("w1", "w2"), [], threading.Event()

    def hear(name, step):
        passes.append((name, step))
        if passes.count(("w2", 0)) == 1 and name == "w2":
            world.publish(2, ("w1",), urgent=False)
            threading.Thread(target=lambda: (world.observers["w2"].aside.get(), is_aside.set()), daemon=True).start()
        if name == "w1" and step == 0 and is_aside.wait(20) and world.members["w2"].assigned.number == 2:
            world.publish(3, ("w1", "w2"), urgent=False)
            until(lambda: passes.count(("w2", 0)) > 1)

    _learn(world, tmp_path, hear, num_parts=12)
    assert passes.count(("w2", 0)) > 1
    assert passes.count(("w1", 0)) + passes.count(("w2", 0)) == 12
    assert [number for number, step in world.observers["w1"].formed if step > 0] == [3]


def test_who_comes_in_the_middle_of_a_step_takes_part_in_the_rest_of_it(tmp_path, until):
    world, alone, passes = _World("w1", "w2", "w3"), _World("w1"), []

    def hear(name, step):
        passes.append((name, step))
        if len(passes) == 3:
            world.publish(2, ("w1", "w2", "w3"), urgent=False)
        if len(passes) > 3 and name != "w3":
            until(lambda: world.members["w1"].newcomers_have_met or ("w3", 0) in passes)

    learned = _learn(world, tmp_path, hear, first=("w1", "w2"), num_parts=12)
    assert ("w3", 0) in passes
    assert Counter(step for _, step in passes) == dict.fromkeys(range(6), 12)
    assert world.observers["w1"].formed[1] == (2, 0)
    assert learned == pytest.approx(_learn(alone, tmp_path / "alone", lambda *_: None, num_parts=12), rel=1e-12)


def test_who_leaves_as_another_comes_in_the_middle_of_a_step_leaves_its_part_of_it_behind(tmp_path, until):
    world, alone, passes = _World("w1", "w2", "w3"), _World("w1"), []

    def hear(name, step):
        passes.append((name, step))
        if ("w1", 0) in passes and ("w2", 0) in passes and world.members["w1"].assigned.number == 1:
            world.publish(2, ("w2", "w3"), urgent=False)
        if name == "w2" and step == 0 and world.members["w1"].assigned.number == 2:
            until(lambda: world.members["w2"].newcomers_have_met or ("w3", 0) in passes)

    learned = _learn(world, tmp_path, hear, first=("w1", "w2"), num_parts=12, of="w3")
    assert ("w3", 0) in passes
    assert Counter(step for _, step in passes) == dict.fromkeys(range(6), 12)
    assert world.observers["w2"].formed[1] == (2, 0)
    assert learned == pytest.approx(_learn(alone, tmp_path / "alone", lambda *_: None, num_parts=12), rel=1e-12)


def test_a_step_is_begun_anew_when_who_holds_a_part_of_it_is_lost_on_the_way_into_the_next_world(tmp_path, until):
    world, alone, passes = _World("w1", "w2", "w3"), _World("w1"), []

    def hear(name, step):
        passes.append((name, step))
        if ("w1", 0) in passes and ("w2", 0) in passes and world.members["w1"].assigned.number == 1:
            world.publish(2, ("w1", "w2", "w3"), urgent=False)
            until(lambda: world.members["w2"].newcomers_have_met and world.members["w1"].newcomers_have_met)
            world.publish(3, ("w2", "w3"))  # w1 holds what all have done, and is not asked for it

    learned = _learn(world, tmp_path, hear, first=("w1", "w2"), num_parts=12, of="w3")
    counts = Counter(step for _, step in passes)
    assert counts.pop(0) > 12
    assert counts == dict.fromkeys(range(1, 6), 12)
    assert learned == pytest.approx(_learn(alone, tmp_path / "alone", lambda *_: None, num_parts=12), rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_whoever_comes_and_goes_and_whenever_what_is_learned_is_the_same(tmp_path, seed):
    rng, is_over, passes = random.Random(seed), threading.Event(), []
    world, alone = _World("w1", "w2", "w3", "w4"), _World("w1")

    def ask_for_worlds():
        number, num_broken = 1, 0
        while not is_over.wait(rng.choice([0.0, 0.02, 0.1, 0.2])):
            number += 1
            others = rng.sample(["w2", "w3", "w4"], rng.randint(0, 3))
            is_broken = num_broken < (num_broken := sum(len(each.broken) for each in world.observers.values()))
            world.publish(number, ("w1", *others), urgent=is_broken or rng.random() < 0.1)

    def hear(name, step):
        passes.append(step)
        time.sleep(rng.random() * 0.008)

    asking = threading.Thread(target=ask_for_worlds, daemon=True)
    asking.start()
    learned = _learn(world, tmp_path, hear, num_parts=20, num_steps=40)
    is_over.set()
    assert len(world.observers["w1"].formed) > 3
    assert learned == pytest.approx(_learn(alone, tmp_path / "alone", lambda *_: None, num_parts=20, num_steps=40), rel=1e-12)


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_a_step_all_of_whose_rows_count_for_nothing_is_refused(tmp_path, micro_batch):
    world, model = _World("w1"), torch.nn.Linear(1, 1)
    world.publish(1, ("w1",))
    job = _job(world, "w1", model, tmp_path)

    def learn():
        for batch in job.batches({"x": torch.ones(4, 1)}, batch_size=4, micro_batch=micro_batch):
            job.weight(0)
            model(batch["x"]).mean().backward()
            job.commit()

    with pytest.raises(InputError, match="All rows of step 1 have weight 0"):
        learn()


def test_learning_rates_that_differ_between_ranks_are_refused(tmp_path):
    world = _World("w1", "w2")
    world.publish(1, ("w1", "w2"))
    refused = {}

    def learn(name):
        model = torch.nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5 if name == "w1" else 0.25)
        job = _job(world, name, model, tmp_path, optimizer)
        try:
            for batch in job.batches({"x": torch.ones(8, 1)}, batch_size=2):
                model(batch["x"]).sum().backward()
                job.commit()
                scheduler.step()
        except InputError as exc:
            refused[name] = exc

    threads = [threading.Thread(target=learn, args=(name,), daemon=True) for name in world.members]
    for thread in threads:
        thread.start()
    _join(threads)
    assert set(refused) == {"w1", "w2"}
    for each in refused.values():
        assert "learning rate of step 2 is not the same on all ranks" in each.problem
        assert "Give the scheduler to rk.elastic" in each.remedy


def _job(world, name, model, folder, optimizer=None):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    return Job(
        Surroundings(
            member=world.members[name],
            checkpoints=Checkpoints(str(folder / name), kept=1, told=lambda _: None),
            checkpoint_every=interval("60s"),
            reporter=_Untold(),
            group_size=1,
            stored_dataset=lambda *_: "",
        ),
        Stateful(model=model, optimizers=[optimizer], schedulers=[], scaler=None),
    )


def _learn(world, folder, hear, *, first=None, num_parts=4, num_steps=6, of="w1"):
    """Train a model of two numbers for steps of micro-batches; give what a member has learned that is in it to the end."""
    world.publish(1, first or tuple(world.members), to=first)
    num_rows = num_parts * num_steps
    x = torch.arange(num_rows, dtype=torch.float64).reshape(num_rows, 1) / num_rows
    models = {}

    def learn(name):
        models[name] = model = torch.nn.Linear(1, 1, dtype=torch.float64)
        model.load_state_dict({"weight": torch.tensor([[0.5]]), "bias": torch.tensor([0.25])})
        job = _job(world, name, model, folder)
        for batch in job.batches({"x": x}, batch_size=num_parts, micro_batch=1):
            hear(name, job.step)
            (model(batch["x"]) - 1).pow(2).mean().backward()
            job.commit()

    threads = {name: threading.Thread(target=learn, args=(name,), daemon=True) for name in world.members}
    for thread in threads.values():
        thread.start()
    _join([threads[of]])
    world.publish(10**6, ())  # the others wait for nobody any more
    _join([each for each in threading.enumerate() if each.name in {"raykit-meet", "raykit-ask"} and each.ident])
    return [each.item() for each in models[of].state_dict().values()]


@pytest.mark.parametrize("is_large", [False, True])
def test_a_newcomer_s_buckets_are_those_of_who_has_trained_before(is_large):
    world = _World("w1", "w2")
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
    _join(threads)
    return {name: [parameter.grad for parameter in models[name].parameters()] for name in names}
