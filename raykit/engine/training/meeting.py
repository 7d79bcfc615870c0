"""A world that is met in a thread, beside the one that stands: who trains goes on until all have come, and waits for nobody."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass

from raykit.engine.training.collective import Group
from raykit.engine.training.rendezvous import BrokenWorldError
from raykit.engine.training.world import Generation


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """What the ranks of a world say to each other: all of them, and those that hold the same part of the model."""

    everyone: Group
    column: Group

    def close(self, *, for_all: bool = False) -> None:
        """Leave them."""
        for group in {self.everyone, self.column}:
            group.close(for_all=for_all)


class Meeting:
    """The next world's ranks on their way to each other, at once or when ``after_s`` have passed."""

    def __init__(self, generation: Generation, meet: Callable[[], Groups], *, after_s: float = 0.0) -> None:
        self.generation = generation
        self._met: Future[Groups] = Future()
        self._told: Future[Groups] = Future()
        self._dropped = threading.Event()
        threading.Thread(target=self._run, args=(meet, after_s), name="raykit-meet", daemon=True).start()

    @property
    def is_dropped(self) -> bool:
        """Whether this world will not be."""
        return self._dropped.is_set()

    @property
    def is_over(self) -> bool:
        """Whether all have come, or it is known that somebody will not."""
        return self._met.done()

    @property
    def has_succeeded(self) -> bool:
        """Whether all have come."""
        return self._met.done() and self._met.exception() is None

    def groups(self) -> Groups:
        """Give what was met; blocking.

        Raises:
            BrokenWorldError: somebody did not come, or it was dropped.
        """
        return self._told.result()

    def drop(self) -> None:
        """Leave a world that will not be, now or as soon as it is met; who waits in it sees so."""
        self._dropped.set()
        with suppress(InvalidStateError):
            self._told.set_exception(BrokenWorldError("a newer world was published"))
        self._met.add_done_callback(_leave)

    def _run(self, meet: Callable[[], Groups], after_s: float) -> None:
        try:
            if self._dropped.wait(after_s):
                raise BrokenWorldError("a newer world was published")
            groups = meet()
        except BaseException as exc:  # it is raised where the groups are asked for
            self._met.set_exception(exc)
            with suppress(InvalidStateError):
                self._told.set_exception(exc)
            return
        self._met.set_result(groups)
        with suppress(InvalidStateError):  # it was dropped
            self._told.set_result(groups)


def _leave(met: Future[Groups]) -> None:
    if met.exception() is None:
        met.result().close(for_all=True)
