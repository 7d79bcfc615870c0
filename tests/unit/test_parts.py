"""A step in micro-batches, without a world: who does which, and what their gradients come to."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import pytest
import torch.distributed as dist

from raykit.engine.training.parts import Accumulated, Parts
from raykit.engine.training.rendezvous import Number
from raykit.errors import InputError


def ranks_of(world_size, num_parts, *, num_done=0):
    store = dist.HashStore()
    return [Parts(Number(store, "parts"), num_done=num_done, num_parts=num_parts) for _ in range(world_size)]


def do(parts, most=99):
    """Have a rank do so many at most; give those that it has done."""
    done = []
    while parts.is_open and len(done) < most:
        parts.take()
        if parts.next is not None:
            done.append(parts.next)
            parts.done()
    return done


@pytest.mark.parametrize(("num_parts", "world_size"), [(12, 3), (13, 4), (2, 3), (1, 1)])
def test_each_micro_batch_is_done_once_and_those_who_are_as_fast_do_as_many(num_parts, world_size):
    ranks = ranks_of(world_size, num_parts)
    done = [[] for _ in ranks]
    while any(each.is_open for each in ranks):
        for mine, parts in zip(done, ranks, strict=True):
            mine.extend(do(parts, most=1))
    assert sorted(chain.from_iterable(done)) == list(range(num_parts))
    assert max(map(len, done)) - min(map(len, done)) <= 1
    assert all(each.is_over and not each.is_closed for each in ranks)


def test_who_takes_no_more_leaves_nothing_undone():
    one, other = ranks_of(2, 12)
    assert do(one, most=1) == [0]
    assert do(other) == list(range(1, 12))
    one.look()
    assert one.is_over


def test_what_is_closed_is_closed_to_all_and_goes_on_where_it_was():
    one, other = ranks_of(2, 12)
    do(one, most=3)
    do(other, most=2)
    one.close()
    assert one.is_closed
    assert not one.is_over
    assert do(other) == []
    assert other.is_closed
    (later,) = ranks_of(1, 12, num_done=max(one.num_known, other.num_known))
    assert do(later) == list(range(5, 12))


def test_what_is_over_is_not_closed():
    one, other = ranks_of(2, 3)
    do(one)
    other.close()
    assert other.is_over
    assert not other.is_closed


def test_ranks_find_a_step_either_closed_or_over_whoever_closes_it_and_when():
    rng, ends = random.Random(0), set()
    for _ in range(200):
        num_parts = rng.randint(1, 6)
        ranks = ranks_of(4, num_parts)
        begin = threading.Barrier(len(ranks))

        def work(parts, closes_after, begin=begin):
            begin.wait()
            done = do(parts, most=closes_after)
            parts.close()
            return done

        with ThreadPoolExecutor(len(ranks)) as pool:
            done = list(chain.from_iterable(pool.map(work, ranks, [rng.choice([0, 1, 2, 99]) for _ in ranks])))
        assert len({each.is_closed for each in ranks}) == 1
        assert sorted(done) == list(range(max(each.num_known for each in ranks)))
        assert all(each.is_closed != each.is_over for each in ranks)
        assert (len(done) == num_parts) == ranks[0].is_over
        ends.add(ranks[0].is_over)
    assert ends == {True, False}


def test_metrics_are_summed_over_rows_by_name():
    accumulated = Accumulated()
    accumulated.add(3, {"loss": 1.0})
    accumulated.add(1, {"right": 0.5, "loss": 5.0})
    accumulated.add(0, {"loss": float("nan")})
    assert (accumulated.num_parts, accumulated.weight, accumulated.names) == (3, 4, ("loss", "right"))
    assert accumulated.sums[:2] == [8.0, 0.5]


def test_who_has_done_nothing_can_hold_what_others_did():
    accumulated = Accumulated()
    accumulated.hold(3, 12.0, [24.0])
    accumulated.add(4, {"value": 6.0})
    assert (accumulated.num_parts, accumulated.weight, accumulated.sums[0]) == (4, 16.0, 48.0)
    accumulated.hold(0, 0.0, ())
    assert (accumulated.num_parts, accumulated.weight, accumulated.sums[0], accumulated.names) == (0, 0.0, 0.0, ("value",))


def test_too_many_metrics_are_refused():
    with pytest.raises(InputError, match="17 metrics"):
        Accumulated().add(1, {str(number): 0.0 for number in range(17)})


def test_what_was_asked_for_ahead_is_had_by_taking_it_and_once():
    one, other = ranks_of(2, 3)
    one.ask()
    one.ask()
    other.take()
    one.take()
    assert {one.next, other.next} == {0, 1}
    assert not one.is_asked
    one.done()
    one.take()
    assert one.next == 2
    other.ask()
    other.done()
    other.take()
    assert other.next is None
    assert other.is_over
