"""Training loops of ranks that come and go, each in a thread of this process."""

import random
import threading
import time
from collections import Counter

import pytest
import torch

from raykit.engine.training.checkpoint import Checkpoints
from raykit.engine.training.job import Job
from raykit.engine.training.loop_state import LoopState, Surroundings
from raykit.engine.training.rendezvous import BrokenWorldError
from raykit.engine.training.state import Stateful
from raykit.errors import InputError
from raykit.spec.training import interval
from tests.unit.worlds import World, joined

TRAINS_S = 90  # a training of seconds, where torch may leave a connection unanswered for three of them, several times


class _Untold:
    def emit(self, *_):
        pass

    def sample(self, *_):
        pass


def test_a_rank_whose_slot_is_given_away_computes_nothing_more_though_the_others_have_not_heard_of_the_next_world(tmp_path):
    world, alone = World("w1", "w2"), World("w1")
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
    assert len(passes["w2"]) == 1
    assert Counter(passes["w1"] + passes["w2"]) == dict.fromkeys(range(6), 4)
    assert learned == pytest.approx(_learn(alone, tmp_path / "alone", lambda *_: None), rel=1e-12)


def test_a_rank_that_has_its_slot_back_before_the_step_s_end_takes_part_in_it_again(tmp_path, until):
    world, passes, is_aside = World("w1", "w2"), [], threading.Event()

    def hear(name, step):
        passes.append((name, step))
        if passes.count(("w2", 0)) == 1 and name == "w2":
            world.publish(2, ("w1",), urgent=False)
            threading.Thread(target=lambda: (world.observers["w2"].aside.get(), is_aside.set()), daemon=True).start()
        if name == "w1" and step == 0 and is_aside.wait(20) and world.members["w2"].assigned.number == 2:
            world.publish(3, ("w1", "w2"), urgent=False)
            until(lambda: passes.count(("w2", 0)) > 1)
        if step > 0:  # nothing is over before the world is entered that brings it back
            until(lambda: world.members[name].generation > 1 or world.members[name].may_enter_next)

    _learn(world, tmp_path, hear, num_parts=12)
    assert passes.count(("w2", 0)) > 1
    assert passes.count(("w1", 0)) + passes.count(("w2", 0)) == 12
    assert [number for number, step in world.observers["w1"].formed if step > 0] == [3 + world.num_anew]


def test_who_comes_in_the_middle_of_a_step_takes_part_in_the_rest_of_it(tmp_path, until):
    world, alone, passes = World("w1", "w2", "w3"), World("w1"), []

    def hear(name, step):
        passes.append((name, step))
        if len(passes) == 3:
            world.publish(2, ("w1", "w2", "w3"), urgent=False)
        if len(passes) > 3 and name != "w3":
            until(lambda: ("w3", 0) in passes or world.has_met_newcomers("w1"))

    learned = _learn(world, tmp_path, hear, first=("w1", "w2"), num_parts=12)
    assert ("w3", 0) in passes
    assert Counter(step for _, step in passes) == dict.fromkeys(range(6), 12)
    assert world.observers["w1"].formed[1] == (2 + world.num_anew, 0)
    assert learned == pytest.approx(_learn(alone, tmp_path / "alone", lambda *_: None, num_parts=12), rel=1e-12)


def test_who_leaves_as_another_comes_in_the_middle_of_a_step_leaves_its_part_of_it_behind(tmp_path, until):
    world, alone, passes = World("w1", "w2", "w3"), World("w1"), []

    def hear(name, step):
        passes.append((name, step))
        if ("w1", 0) in passes and ("w2", 0) in passes and world.members["w1"].assigned.number == 1:
            world.publish(2, ("w2", "w3"), urgent=False)
        if name == "w2" and step == 0 and world.members["w1"].assigned.number == 2:
            until(lambda: ("w3", 0) in passes or world.has_met_newcomers("w2"))

    learned = _learn(world, tmp_path, hear, first=("w1", "w2"), num_parts=12, of="w3")
    assert ("w3", 0) in passes
    assert Counter(step for _, step in passes) == dict.fromkeys(range(6), 12)
    assert world.observers["w2"].formed[1] == (2 + world.num_anew, 0)
    assert learned == pytest.approx(_learn(alone, tmp_path / "alone", lambda *_: None, num_parts=12), rel=1e-12)


def test_a_step_is_begun_anew_when_who_holds_a_part_of_it_is_lost_on_the_way_into_the_next_world(tmp_path, until):
    world, alone, passes, once = World("w1", "w2", "w3"), World("w1"), [], threading.Lock()

    def hear(name, step):
        passes.append((name, step))
        if ("w1", 0) in passes and ("w2", 0) in passes and once.acquire(blocking=False):
            world.publish(2, ("w1", "w2", "w3"), urgent=False)
            until(lambda: world.has_met_newcomers("w1") and world.has_met_newcomers("w2"))
            world.publish_next(("w2", "w3"), urgent=True)  # w1 holds what all have done, and is not asked for it

    learned = _learn(world, tmp_path, hear, first=("w1", "w2"), num_parts=12, of="w3")
    counts = Counter(step for _, step in passes)
    assert counts.pop(0) > 12
    assert counts == dict.fromkeys(range(1, 6), 12)
    assert learned == pytest.approx(_learn(alone, tmp_path / "alone", lambda *_: None, num_parts=12), rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_whoever_comes_and_goes_and_whenever_what_is_learned_is_the_same(tmp_path, seed):
    rng, is_over, passes = random.Random(seed), threading.Event(), []
    world, alone = World("w1", "w2", "w3", "w4"), World("w1")

    def num_broken():
        return sum(len(each.broken) for each in world.observers.values())

    def ask_for_worlds():
        """Ask for the next one some passes later, or when one has broken: as often as there is something to disturb."""
        while not is_over.is_set():
            enough, known = len(passes) + rng.choice([0, 10, 20, 40]), num_broken()
            while len(passes) < enough and num_broken() == known and not is_over.wait(0.005):
                pass
            others = rng.sample(["w2", "w3", "w4"], rng.randint(0, 3))
            world.publish_next(("w1", *others), urgent=num_broken() > known or rng.random() < 0.1)

    def hear(name, step):
        """Take a moment for a pass, and a longer one while there were fewer worlds than one in ten steps."""
        passes.append(step)
        time.sleep(rng.random() * (0.008 if len(world.observers["w1"].formed) > step // 10 else 0.08))

    asking = threading.Thread(target=ask_for_worlds, daemon=True)
    asking.start()
    learned = _learn(world, tmp_path, hear, num_parts=20, num_steps=40, has_hub=False)
    is_over.set()
    assert len(world.observers["w1"].formed) > 3
    assert learned == pytest.approx(_learn(alone, tmp_path / "alone", lambda *_: None, num_parts=20, num_steps=40), rel=1e-12)


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_a_step_all_of_whose_rows_count_for_nothing_is_refused(tmp_path, micro_batch):
    world, model = World("w1"), torch.nn.Linear(1, 1)
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
    world = World("w1", "w2")
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
    joined(threads)
    assert set(refused) == {"w1", "w2"}
    for each in refused.values():
        assert "learning rate of step 2 is not the same on all ranks" in each.problem
        assert "Give the scheduler to rk.elastic" in each.remedy


def test_a_world_that_breaks_in_the_vote_behind_a_step_keeps_it(tmp_path, until):
    world = World("w1", "w2")
    world.publish(1, ("w1", "w2"))
    steps, weights, lost, propose = {}, {}, [], world.members["w2"].propose

    def is_lost_once():
        if not lost:
            lost.append("w2")
            world.broke("w2")
            raise BrokenWorldError("w2 is gone")
        return propose()

    world.members["w2"].propose = is_lost_once

    def learn(name):
        model = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        torch.nn.init.zeros_(model.weight)
        job = _job(world, name, model, tmp_path)
        for batch in job.batches({"x": torch.ones(8, 1, dtype=torch.float64)}, batch_size=4):
            if job.step == 0:
                world.publish(2, ("w1", "w2"), to=[name], urgent=False)
                until(lambda: world.members[name].may_enter_next)
            model(batch["x"]).mean().backward()
            steps[name] = job.commit(), job.step
            weights[name] = model.weight.item()

    threads = [threading.Thread(target=learn, args=(name,), daemon=True) for name in world.members]
    for thread in threads:
        thread.start()
    joined(threads)
    assert lost
    assert steps == {"w1": (True, 2), "w2": (True, 2)}
    assert weights == {"w1": pytest.approx(-0.2), "w2": pytest.approx(-0.2)}


def _job(world, name, model, folder, optimizer=None):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    surroundings = Surroundings(
        member=world.members[name],
        checkpoints=Checkpoints(str(folder / name), kept=1, told=lambda _: None),
        checkpoint_every=interval("60s"),
        reporter=_Untold(),
        group_size=1,
        stored_dataset=lambda *_: "",
    )
    return Job(LoopState(surroundings, Stateful(model=model, optimizers=[optimizer], schedulers=[], scaler=None)))


def _learn(world, folder, hear, *, first=None, num_parts=4, num_steps=6, of="w1", has_hub=True):
    """Train a model of two numbers for steps of micro-batches; give what a member has learned that is in it to the end.

    With a hub a world that has failed is published anew.
    """
    for observer in world.observers.values() if has_hub else ():
        observer.tell_broken = world.publish_anew
    world.publish_next(first or tuple(world.members), to=first)
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
    joined([threads[of]], within_s=TRAINS_S)
    world.end()
    joined([each for each in threading.enumerate() if each.name in {"raykit-meet", "raykit-ask"} and each.ident])
    return [each.item() for each in models[of].state_dict().values()]
