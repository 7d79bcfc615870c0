"""A step in micro-batches: who does which, whoever comes and goes meanwhile, and the sum of what they gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from raykit.engine.training.rendezvous import Number
from raykit.engine.training.tally import MAX_METRICS, names_of
from raykit.errors import InputError

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
        self.is_over = self.is_closed = False

    @property
    def is_open(self) -> bool:
        """Whether there may be more to take."""
        return not self.is_over and not self.is_closed

    def take(self) -> None:
        """Have one as the next, if there is one; blocking."""
        self._see(taken := self._number.add(1))
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
    """Gradients and metrics of several backward passes, each of which gives means over rows of its own.

    ``gradients * unit`` is their sum over ``weight`` rows; ``sums`` are those of the metrics, in the order of ``names``. A rank
    that does nothing of a step takes its names to be those of the step before.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self._parameters = parameters
        self._aside: list[torch.Tensor | None] = []
        self.names: tuple[str, ...] = ()
        self.clear()

    def clear(self) -> None:
        """Hold nothing; the gradients are the caller's to drop."""
        self.weight = self.unit = self._next = 0.0
        self.num_parts = 0
        self.sums = [0.0] * MAX_METRICS
        self._aside = []

    def hold(self, num_parts: int, weight: float, sums: Sequence[float]) -> None:
        """Hold what these and other ranks have given: the gradients are means over all their rows."""
        self.clear()
        self.num_parts, self.weight, self.unit, self.sums = num_parts, weight, weight, list(sums)

    def count_next_as(self, weight: float) -> None:
        """Have what the next backward pass adds count as a mean over so many rows; over none it is let go.

        Raises:
            InputError: it is negative.
        """
        if weight < 0:
            raise InputError(f"The weight of a micro-batch is {weight:g}.", "Give over how many rows its loss is a mean.")
        self._next = weight
        if weight == 0:
            self._aside = [each.grad for each in self._parameters]
            self._put([None] * len(self._aside))
            return
        if self.unit not in {0.0, weight}:
            for gradient in (each.grad for each in self._parameters if each.grad is not None):
                gradient.mul_(self.unit / weight)
        self.unit = weight

    def add(self, metrics: Mapping[str, float]) -> None:
        """Take what the pass has given.

        Raises:
            InputError: too many metrics.
        """
        self.names = names_of(metrics, before=self.names if self.num_parts else ())
        self.num_parts += 1
        if self._next == 0:
            self._put(self._aside)
            return
        self.weight += self._next
        for name, value in metrics.items():
            self.sums[self.names.index(name)] += value * self._next

    def _put(self, gradients: Sequence[torch.Tensor | None]) -> None:
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
