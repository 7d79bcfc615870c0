"""How many replicas a training run may have: as it was asked, or resized to, and fewer while it lends slots."""

from __future__ import annotations

import time
from contextlib import suppress
from functools import partial
from typing import Any

from raykit.commands import HeldSlot, Hurry, Lend, Take
from raykit.engine.run import RunContext, find_host
from raykit.engine.slots import HandOn
from raykit.events import SlotsLent
from raykit.spec import TrainSpec
from raykit.views import RunView


class Size:
    """``least`` and ``asked`` are the bounds of what was asked, in replicas; ``most`` is how many it may have now."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._spec: TrainSpec = context.spec
        self.least, self.asked = self._spec.min_replicas, self._spec.max_replicas
        self.has_started = False
        self._lent_down_to: int | None = None
        self._borrower = ""
        self._borrower_host: Any = None
        self._hands_on = False
        self._lend_by_s = 0.0

    def take_up(self, view: RunView) -> None:
        """Be as it was under an earlier host."""
        if view.loan is not None:
            self._lend_down_to(view.loan.max_workers, view.loan.borrower)
        if view.resized_to is not None:
            self.least, self.asked = (workers // self._spec.group for workers in view.resized_to)

    def resize(self, workers: tuple[int, int]) -> None:
        """Take other bounds, in workers."""
        self.least, self.asked = (each // self._spec.group for each in workers)

    def lend(self, command: Lend) -> None:
        """Have fewer while another run needs slots."""
        if (self._replicas(command.max_workers), command.borrower) != (self._lent_down_to, self._borrower):
            self._lend_down_to(command.max_workers, command.borrower)
            self._hands_on = command.hands_on
            self._context.emit(SlotsLent(borrower=command.borrower, max_workers=command.max_workers))

    @property
    def most(self) -> int:
        """How many it may have now; what it needs at least, nobody borrows from a run that has started."""
        if self._lent_down_to is None:
            return self.asked
        return max(self.least if self.has_started else 0, min(self.asked, self._lent_down_to))

    @property
    def is_late(self) -> bool:
        """Whether the time is over in which slots that it lends had to be given."""
        return self._lent_down_to is not None and time.monotonic() >= self._lend_by_s

    @property
    def hand_on(self) -> HandOn | None:
        """What has the borrower take a slot, where it holds such slots too."""
        return partial(_hand_on, self._borrower_host, self._borrower) if self._hands_on and self._borrower_host else None

    def hurry_borrower(self) -> None:
        """Have the run that waits for what was given back look for it now, before the arbiter sees that it was."""
        if self._borrower_host is not None:
            self._borrower_host.command.remote(Hurry(run=self._borrower))

    def _lend_down_to(self, workers: int | None, borrower: str) -> None:
        self._lent_down_to, self._borrower, self._borrower_host = self._replicas(workers), borrower, None
        if workers is not None:
            with suppress(ValueError):  # it ended since
                self._borrower_host = find_host(borrower)
        self._lend_by_s = time.monotonic() + self._spec.lend_within_s

    def _replicas(self, workers: int | None) -> int | None:
        return None if workers is None else workers // self._spec.group


def _hand_on(host: Any, run: str, slot: HeldSlot, by_unix_s: float) -> None:
    host.command.remote(Take(run=run, slot=slot, by_unix_s=by_unix_s))
