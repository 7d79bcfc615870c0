"""A world that breaks while works are in flight, its ranks in threads of this process, over real gloo."""

import socket
import threading

import pytest
import torch

from raykit.engine.training.collective import BrokenWorldError, Group, open_store

HOST = "127.0.0.1"
RANKS = 3


@pytest.fixture
def groups():
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
            given_up=lambda: rank == 0,
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


def test_who_leaves_a_broken_world_waits_for_nobody_and_wakes_those_who_wait_for_it(groups):
    # The last rank takes part in nothing: gloo's threads of the first would wait for it as long as an operation may take.
    works = [groups[rank].reduce(torch.ones(100_000)) for rank in (0, 1)]
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
