"""A world that breaks while works are in flight, its ranks in threads of this process, over real gloo."""

import socket
import threading
import time
from datetime import timedelta

import pytest
import torch

from raykit.engine.training import collective
from raykit.engine.training.collective import Group
from raykit.engine.training.rendezvous import BrokenWorldError, open_store

HOST = "127.0.0.1"
RANKS = 3


@pytest.fixture
def short_meetings(monkeypatch):
    """Have meetings take half a second at most; give that."""
    monkeypatch.setattr(collective, "FORM_TIMEOUT", timedelta(seconds=0.5))
    return 0.5


@pytest.fixture
def giving_up():
    """Give the ranks that shall wait for nobody."""
    return set()


@pytest.fixture
def groups(giving_up):
    """Give the groups of a world by their ranks."""
    store, address = open_store(HOST)
    formed = {}

    def form(rank):
        formed[rank] = Group(
            store=address,
            host=HOST,
            prefix="world",
            rank=rank,
            world_size=RANKS,
            device=torch.device("cpu"),
            outdated=lambda: False,
            given_up=lambda: rank in giving_up,
        )

    threads = [threading.Thread(target=form, args=(rank,), daemon=True) for rank in range(RANKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    yield formed
    for group in formed.values():
        group.close()
    del store


@pytest.mark.parametrize("size", [8, 100_000])
def test_who_leaves_a_broken_world_waits_for_nobody_and_wakes_those_who_wait_for_it(groups, giving_up, size):
    giving_up.add(0)
    # The last rank takes part in nothing: gloo's threads of the first would wait for it as long as an operation may take.
    works = [groups[rank].reduce(torch.ones(size)) for rank in (0, 1)]
    with pytest.raises(BrokenWorldError, match="given up"):
        groups[0].wait(works[0])
    del works[0]
    groups[0].close()
    with pytest.raises(BrokenWorldError):
        groups[1].wait(works[0])
    for thread in threading.enumerate():
        if thread.name == "raykit-leave":
            thread.join(30)
            assert not thread.is_alive()


@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (100_000,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_all_ranks_have_the_same_sum_also_when_one_comes_later_than_a_meeting_may_take(short_meetings, groups, shape, dtype):
    torch.manual_seed(0)
    given = [(torch.randn(shape) * 100).to(dtype) for _ in range(RANKS)]
    summed = [each.clone() for each in given]

    def reduce(rank):
        if rank == 2 and shape == (7,):
            time.sleep(2 * short_meetings)
        groups[rank].wait(groups[rank].reduce(summed[rank]))

    threads = [threading.Thread(target=reduce, args=(rank,), daemon=True) for rank in range(RANKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert all(torch.equal(each, summed[0]) for each in summed)
    rounded = torch.finfo(dtype).eps * 1000 if dtype.is_floating_point else 0
    torch.testing.assert_close(summed[0].double(), torch.stack(given).double().sum(0), rtol=0, atol=rounded)


def test_who_meets_in_a_world_whose_store_dies_at_that_moment_goes_on_to_the_next():
    listener = socket.create_server((HOST, 0))
    dead = threading.Event()

    def die():  # its port is still there when it is looked for, and gone when torch asks
        listener.accept()[0].close()
        listener.close()
        dead.set()

    threading.Thread(target=die, daemon=True).start()
    with pytest.raises(BrokenWorldError, match="a newer world was published"):
        Group(
            store=listener.getsockname(),
            host=HOST,
            prefix="world",
            rank=0,
            world_size=2,
            device=torch.device("cpu"),
            outdated=dead.is_set,
            given_up=dead.is_set,
        )
