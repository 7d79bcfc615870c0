"""A step in micro-batches, without a world: how they are divided, and what their gradients come to."""

import random

import pytest
import torch

from raykit.engine.training.parts import Accumulated, Parts
from raykit.errors import InputError


def do(ranks, gives_way):
    """Have ranks do a step together; ``gives_way(rank, num_done)`` says who leaves when. Give what each has done."""
    done = {rank: [] for rank in range(len(ranks))}
    for _ in range(100):
        if all(each.is_over for each in ranks):
            return done
        stands = []
        for rank, parts in enumerate(ranks):
            while not parts.must_agree(gives_way=gives_way(rank, len(done[rank]))):
                done[rank].append(parts.next)
                parts.done()
            stands.append(parts.stand(gives_way=gives_way(rank, len(done[rank]))))
        for parts in ranks:
            parts.agree(stands)
    raise AssertionError("the step has no end")


def world(num_parts, world_size):
    return [Parts(num_parts, rank=rank, world_size=world_size) for rank in range(world_size)]


@pytest.mark.parametrize(("num_parts", "world_size"), [(12, 3), (13, 4), (2, 3), (1, 1)])
def test_each_micro_batch_is_done_once_and_all_ranks_have_about_as_many(num_parts, world_size):
    done = do(world(num_parts, world_size), lambda *_: False)
    assert sorted(part for mine in done.values() for part in mine) == list(range(num_parts))
    counts = list(map(len, done.values()))
    assert max(counts) - min(counts) <= 1


def test_what_one_leaves_undone_is_divided_among_the_others():
    done = do(world(12, 3), lambda rank, num_done: rank == 1 and num_done >= 1)
    assert done[1] == [1]
    assert sorted(part for mine in done.values() for part in mine) == list(range(12))
    assert {len(done[0]), len(done[2])} == {5, 6}


def test_whoever_gives_way_and_whenever_each_micro_batch_is_done_once():
    rng = random.Random(0)
    for _ in range(300):
        num_parts, world_size = rng.randint(1, 20), rng.randint(1, 5)
        leaves_after = {rank: rng.choice([0, 1, 2, 99]) for rank in range(world_size)}
        done = do(world(num_parts, world_size), lambda rank, num_done, after=leaves_after: num_done >= after[rank])
        assert sorted(part for mine in done.values() for part in mine) == list(range(num_parts))


def test_gradients_of_unequal_micro_batches_come_to_the_mean_over_all_their_rows():
    torch.manual_seed(0)
    model, x = torch.nn.Linear(4, 3).double(), torch.randn(10, 4, dtype=torch.float64)
    model(x).pow(2).mean().backward()
    whole = model.weight.grad.clone()
    model.zero_grad()
    accumulated = Accumulated(list(model.parameters()))
    accumulated.begin()
    for rows in (x[:3], x[3:4], x[4:10]):
        accumulated.count_next_as(len(rows))
        loss = model(rows).pow(2).mean()
        loss.backward()
        accumulated.add({"loss": float(loss.detach())})
    assert accumulated.weight == 10
    assert torch.allclose(model.weight.grad * accumulated.unit / accumulated.weight, whole)
    assert accumulated.means["loss"] == pytest.approx(float(model(x).detach().pow(2).mean()))


def test_what_counts_for_nothing_changes_nothing():
    model = torch.nn.Linear(1, 1, bias=False)
    accumulated = Accumulated(list(model.parameters()))
    accumulated.begin()
    for value, weight in ((1.0, 2), (5.0, 0), (3.0, 2)):
        accumulated.count_next_as(7)  # the rows, before the loop's body says otherwise
        accumulated.count_next_as(weight)
        (model.weight * value).sum().backward()
        accumulated.add({"value": value})
    assert float(model.weight.grad) * accumulated.unit / accumulated.weight == pytest.approx(2.0)
    assert accumulated.means == {"value": 2.0}
    with pytest.raises(InputError, match="over how many rows"):
        accumulated.count_next_as(-1)
