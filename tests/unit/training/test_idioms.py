"""Ordinary torch loops compute on one, two and three ranks what they compute in plain torch.

The ranks are threads of this process, over real stores and real gloo.
"""

from __future__ import annotations

import queue
import threading

import pytest
import torch

from raykit.engine.training.checkpoint import Checkpoints
from raykit.engine.training.job import Job
from raykit.engine.training.loop_state import LoopState, Surroundings
from raykit.engine.training.state import Stateful
from raykit.spec.training import interval
from tests.unit.training.idioms import EPOCHS, IDIOMS, loader
from tests.unit.worlds import World

TOLERANCE = {"autocast": 2e-2}  # a share of a batch is rounded to bfloat16 otherwise than the whole
WITHIN_S = 30
DIES_AT = 4
COUNT_FOR_THEMSELVES = {
    "gradients_changed_by_hand": "draws from a generator of its own, which a rank that joins has not",
    "frozen_then_unfrozen": "counts its own batches",
    "missing_gradients": "counts its own batches",
    "batch_that_is_left_out": "counts its own batches",
    "scaled_gradients": "counts its own batches",
    "loop_left_by_break": "counts its own batches",
    "group_added_later": "counts its own batches",
    "gradients_zeroed_in_place": "counts its own batches",
    "fewer_rows_than_ranks": "is over before a rank dies",
    "model_copied_while_it_trains": "keeps a list of its own",
}


class _Plain:
    """Gives out the batches of a DataLoader, as plain torch does."""

    def __call__(self, _, __, *, data=None, **___):
        data = data or loader()
        for _ in range(EPOCHS):
            yield from data

    def each_epoch(self, *_, **__):
        return lambda: iter(loader())

    def weigh(self, _):
        """One process needs no weight."""


class _Elastic:
    """Gives them out to a rank."""

    def __init__(self, world, name, folder, dies=None):
        self._member, self._folder = world.members[name], folder / name
        self._dies, self._num_left = dies, DIES_AT

    def _come_nearer(self, *_):
        """Die, as seen from the other ranks, at the n-th call."""
        self._num_left -= 1
        if not self._num_left:
            self._member.broke("killed")
            raise _DiedError

    def _given(self, batches):
        for batch in batches:
            if self._dies == "before forward":
                self._come_nearer()
            yield batch

    def _job(self, model, optimizer, **options):
        def several(given):
            return given if isinstance(given, list) else [] if given is None else [given]

        if self._dies == "in backward":
            next(each for each in model.parameters() if each.requires_grad).register_hook(self._come_nearer)
        surroundings = Surroundings(
            member=self._member,
            checkpoints=Checkpoints(str(self._folder), kept=1, told=lambda _: None),
            checkpoint_every=interval("60s"),
            reporter=_Unheard(),
            group_size=1,
            stored_dataset=lambda *_: "",
        )
        cared_for = Stateful(
            model=model,
            optimizers=several(optimizer),
            schedulers=several(options.get("scheduler")),
            scaler=options.get("scaler"),
            extras=several(options.get("extra_state")),
        )
        job = Job(LoopState(surroundings, cared_for))
        self.weigh = job.weight
        return job

    def __call__(self, model, optimizer, *, data=None, **options):
        return self._given(self._job(model, optimizer, **options).batches(data or loader(), epochs=EPOCHS))

    def each_epoch(self, model, optimizer, **options):
        job = self._job(model, optimizer, **options)
        return lambda: self._given(job.batches(loader()))


class _DiedError(Exception):
    pass


class _Unheard:
    def emit(self, *_):
        pass

    def sample(self, *_):
        pass


@pytest.fixture(params=[1, 2, 3])
def ranks(request, tmp_path):
    """Run a loop on so many ranks at once; return what each returned, or raise the first error."""
    world = World(*("w1", "w2", "w3")[: request.param])
    world.publish_next(tuple(world.members))

    return lambda function: _run(world, dict.fromkeys(world.members, function), tmp_path).values()


@pytest.fixture(params=["before forward", "in backward"])
def survivors(request, tmp_path):
    """Run a loop on two ranks of which one dies and is replaced by a third; return what the survivors returned."""
    world = World("w1", "w2", "w3")

    def replace(generation):
        if generation == 1:
            world.publish(2, ("w1", "w3"))
        else:
            world.publish_anew(generation)

    for each in world.observers.values():
        each.tell_broken = replace
    world.publish_next(("w1", "w2"))

    def run(function):
        results = _run(world, dict.fromkeys(world.members, function), tmp_path, w2=request.param)
        assert isinstance(results.pop("w2"), _DiedError), "the rank has not died"
        return results.values()

    return run


def _run(world, functions, folder, **dies):
    """Run each rank's loop in a thread; return what they return, and raise what they raise, unless they have died."""
    ended = queue.SimpleQueue()

    def of_rank(name):
        try:
            ended.put((name, functions[name](_Elastic(world, name, folder, dies.get(name)))))
        except BaseException as exc:
            ended.put((name, exc))

    for name in functions:
        threading.Thread(target=of_rank, args=(name,), daemon=True).start()
    results = {}
    for _ in functions:
        name, results[name] = ended.get(timeout=WITHIN_S)
        if isinstance(results[name], BaseException) and not isinstance(results[name], _DiedError):
            raise results[name]
    return results


@pytest.mark.parametrize("name", IDIOMS)
def test_an_idiom_computes_what_plain_torch_computes(ranks, name):
    expected = _numbers(IDIOMS[name](_Plain()))
    for result in ranks(IDIOMS[name]):
        for ours, theirs in zip(_numbers(result), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=TOLERANCE.get(name, 1e-10))


@pytest.mark.parametrize("name", [name for name in IDIOMS if name not in COUNT_FOR_THEMSELVES])
def test_an_idiom_computes_the_same_when_a_rank_dies_and_another_joins(survivors, name):
    expected = _parameters(IDIOMS[name](_Plain()))
    for result in survivors(IDIOMS[name]):
        for ours, theirs in zip(_parameters(result), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=TOLERANCE.get(name, 1e-10))


def _parameters(result):
    """Return the tensors of a model's state alone: a rank that joins has not seen what a loop has listed before."""
    model, *_ = result if isinstance(result, tuple) else (result,)
    return [each.detach().clone() for each in model.state_dict().values()]


def _numbers(result):
    """Return what an idiom has made: the tensors of a model's state, and others beside it."""
    model, *others = result if isinstance(result, tuple) else (result,)
    return [*(each.detach().clone() for each in model.state_dict().values()), *others]
