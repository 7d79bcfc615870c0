"""A step in micro-batches: who does which, whoever comes and goes meanwhile, and the sum of what they gave."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from raykit.engine.training.rendezvous import Number
from raykit.engine.training.tally import MAX_METRICS, names_of

CLOSED = 2**40  # as many micro-batches as no step has


class Parts:
    """The micro-batches of a step, by number, which the ranks of a world take one after the other, each when it is free.

    How many are taken is a number that all share. So a rank that takes no more leaves nothing undone, nobody has to be told,
    and who is fast does more. Who wants the world to change before the step's end closes the number, unless all are taken:
    then each rank finds so when it would take another, and all that were taken are done.
    """

    def __init__(self, number: Number, *, num_done: int, num_parts: int) -> None:
        """Begin, or go on.

        Args:
            number: zero at first; nobody else's.
            num_done: of the step's micro-batches, in worlds before.
            num_parts: of the whole step.
        """
        self._number, self._before, self._num_parts = number, num_done, num_parts
        self.num_known = num_done
        self.next: int | None = None
        self._asked: Callable[[], int] | None = None
        self.is_over = self.is_closed = False

    @property
    def is_open(self) -> bool:
        """Whether there may be more to take."""
        return not self.is_over and not self.is_closed

    @property
    def is_asked(self) -> bool:
        """Whether one was asked for and not had yet: if there is one, it is to be done."""
        return self._asked is not None

    def ask(self) -> None:
        """Ask for one, which is had by :meth:`take`."""
        self._asked = self._asked or self._number.adding(1)

    def take(self) -> None:
        """Have one as the next, if there is one; blocking."""
        taken, self._asked = (self._asked or self._number.adding(1))(), None
        self._see(taken)
        if self.is_open:
            self.next = self._before + taken
            self.num_known = self.next + 1

    def look(self) -> None:
        """See whether there may be more to take, and take none; blocking."""
        self._see(self._number.add(0))

    def close(self) -> None:
        """Have nobody take another; blocking. Where all are taken nothing is changed."""
        while self.is_open:
            self._see(taken := self._number.add(0))
            self.is_closed = self.is_closed or (self.is_open and self._number.replace(taken, CLOSED))

    def done(self) -> None:
        """Count the next one as done."""
        self.next = None

    def forget(self) -> None:
        """Keep no number: all ranks are done with it."""
        self._number.forget()

    def _see(self, taken: int) -> None:
        self.is_closed = taken >= CLOSED
        self.is_over = not self.is_closed and self._before + taken >= self._num_parts


class Accumulated:
    """What several passes have given beside gradients, each over rows of its own: the sums of metrics, and over how many rows.

    ``sums`` are in the order of ``names``. A rank that does nothing of a step takes its names to be those of the step before.
    """

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.hold(0, 0.0, ())

    def hold(self, num_parts: int, weight: float, sums: Sequence[float]) -> None:
        """Hold what these and other ranks have given, which may be nothing."""
        self.num_parts, self.weight, self.sums = num_parts, weight, [*sums, *[0.0] * (MAX_METRICS - len(sums))]

    def add(self, weight: float, metrics: Mapping[str, float]) -> None:
        """Take the metrics of a pass, as means over so many rows.

        Raises:
            InputError: too many metrics.
        """
        self.names = names_of(metrics, before=self.names if self.num_parts else ())
        self.num_parts += 1
        self.weight += weight
        for name, value in metrics.items():
            self.sums[self.names.index(name)] += value * weight if weight else 0.0
