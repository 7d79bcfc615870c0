"""Ordinary torch loops compute on one, two and three ranks what they compute in plain torch."""

from __future__ import annotations

import pytest
import torch

from tests.unit.training.idioms import EPOCHS, IDIOMS, loader
from tests.unit.training.ranks import DiedError, run_on
from tests.unit.worlds import World

TOLERANCE = {"autocast": 2e-2}  # a share of a batch is rounded to bfloat16 otherwise than the whole
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


@pytest.fixture(params=[1, 2, 3])
def ranks(request, tmp_path):
    """Run a loop on so many ranks at once; return what each returned, or raise the first error."""
    world = World(*("w1", "w2", "w3")[: request.param])
    world.publish_next(tuple(world.members))

    return lambda function: run_on(world, dict.fromkeys(world.members, function), tmp_path).values()


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
        results = run_on(world, dict.fromkeys(world.members, function), tmp_path, w2=request.param)
        assert isinstance(results.pop("w2"), DiedError), "the rank has not died"
        return results.values()

    return run


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
