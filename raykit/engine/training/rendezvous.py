"""Where the ranks of a world find each other: a store that one of them serves, and what is asked of it."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from raykit.engine.training import sockets
from raykit.engine.training.world import Address

FORM_TIMEOUT = timedelta(seconds=3)  # all have arrived by then: it bounds the wait for one that dies in between
QUICK_TIMEOUTS = timedelta(seconds=0.5), timedelta(seconds=1)
"""Of a store that serves others meanwhile a connection may never be answered (torch 2.13); the next one is, at once."""
MEET_S = 0.005
WAIT_LOOK = timedelta(seconds=0.02)  # how often a wait asks whether the world was given up meanwhile


class BrokenWorldError(Exception):
    """A peer is gone: the step is to be done again in the next world."""


def open_store(host: str) -> tuple[Any, Address]:
    """Serve a rendezvous store from this process, on a free port of ``host``, an address of this node."""
    with sockets.opening:
        listener = socket.create_server((host, 0))
        port = listener.getsockname()[1]
        store = dist.TCPStore(
            host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach(), use_libuv=True
        )
    return store, (host, port)


def join_store(store: Address, outdated: Callable[[], bool]) -> Any:
    """Be a client of a rendezvous store.

    Torch asks an owner that has just died again and again, for up to twice its timeout, and nothing stops it: it does so
    in a thread that is left behind.

    Raises:
        BrokenWorldError: nobody serves it, or this world will not be.
    """

    def client(timeout: timedelta) -> Any:
        socket.create_connection(store, timeout=FORM_TIMEOUT.total_seconds()).close()
        return dist.TCPStore(*store, is_master=False, wait_for_workers=False, timeout=timeout)

    def join() -> Any:
        for timeout in QUICK_TIMEOUTS:
            with suppress(RuntimeError):
                found = client(timeout)
                found.set_timeout(FORM_TIMEOUT)
                return found
        return client(FORM_TIMEOUT)

    return Question(join, given_up=outdated, look_s=MEET_S).answer()


class Question:
    """What a store is asked in a thread, which is left behind where its owner never answers."""

    def __init__(self, ask: Callable[[], Any], *, given_up: Callable[[], bool], look_s: float) -> None:
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._given_up, self._look_s = given_up, look_s
        threading.Thread(target=self._run, args=(ask,), name="raykit-ask", daemon=True).start()

    def answer(self) -> Any:
        """Give the answer; blocking.

        Raises:
            BrokenWorldError: the store's owner is gone, or what is asked for was given up.
        """
        while not self._given_up():
            with suppress(queue.Empty):
                answer = self._answers.get(timeout=self._look_s)
                if isinstance(answer, Exception):
                    raise BrokenWorldError(f"the store's owner is gone: {answer}") from answer
                return answer
        raise BrokenWorldError("a newer world was published")

    def _run(self, ask: Callable[[], Any]) -> None:
        try:
            self._answers.put(ask())
        except (OSError, RuntimeError) as exc:
            self._answers.put(exc)


class Number:
    """A number that ranks share, zero at first. What it is asked raises BrokenWorldError where nobody answers any more."""

    def __init__(self, store: Any, name: str, given_up: Callable[[], bool] = lambda: False) -> None:
        self._store, self._name, self._given_up = store, name, given_up

    def add(self, amount: int) -> int:
        """Make it larger, and give what it was before; blocking."""
        return self.adding(amount)()

    def adding(self, amount: int) -> Callable[[], int]:
        """Make it larger meanwhile, and give what has what it was before; that one blocks."""
        question = self._ask(lambda: self._store.add(self._name, amount))
        return lambda: int(question.answer()) - amount

    def replace(self, value: int, other: int) -> bool:
        """Make it ``other`` if it is ``value`` still, and say so; blocking. It was added to before."""
        return int(self._ask(lambda: self._store.compare_set(self._name, str(value), str(other))).answer()) == other

    def forget(self) -> None:
        """Have the store keep it no longer; nobody waits for that."""

        def delete() -> None:
            with suppress(RuntimeError):
                self._store.delete_key(self._name)

        threading.Thread(target=delete, name="raykit-ask", daemon=True).start()

    def _ask(self, ask: Callable[[], Any]) -> Question:
        return Question(ask, given_up=self._given_up, look_s=WAIT_LOOK.total_seconds())
