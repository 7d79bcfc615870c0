"""A step in micro-batches: what of it is this rank's, what it does for another that leaves in its middle, and their sum."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch

from raykit.errors import InputError


class Parts:
    """The micro-batches of a step, by number, as all ranks know them.

    Each rank does its own in their order. Then all tell what they have done; what somebody has left undone because it gives
    way is divided among the others, until nothing is left. So a rank that gives way has only to end the one that it is in.
    """

    def __init__(self, num_parts: int, *, rank: int, world_size: int) -> None:
        self._rank, self._num_done = rank, 0
        self._by_rank = [list(range(place, num_parts, world_size)) for place in range(world_size)]
        self._somebody_stays = True
        self.is_over = False

    @property
    def next(self) -> int | None:
        """The one that this rank does next; None when the others are to be asked, or all are done."""
        mine = self._by_rank[self._rank]
        return mine[self._num_done] if self._num_done < len(mine) else None

    def done(self) -> None:
        """Count the next one as done."""
        self._num_done += 1

    def must_agree(self, *, gives_way: bool) -> bool:
        """Say whether the others are to be asked now: this rank has done what is its own, or leaves it to those who stay."""
        return not self.is_over and (self.next is None or (gives_way and self._somebody_stays))

    def stand(self, *, gives_way: bool) -> list[int]:
        """Give what the others have to know."""
        return [self._num_done, int(gives_way)]

    def agree(self, stands: Sequence[Sequence[int]]) -> None:
        """Take how all ranks stand, by rank, and divide what is left anew."""
        left = [part for mine, (num_done, _) in zip(self._by_rank, stands, strict=True) for part in mine[num_done:]]
        staying = [rank for rank, (_, gives_way) in enumerate(stands) if not gives_way]
        self._somebody_stays = bool(staying)
        staying = staying or list(range(len(stands)))
        self._by_rank = [[] for _ in stands]
        for place, rank in enumerate(staying):
            self._by_rank[rank] = left[place :: len(staying)]
        self._num_done, self.is_over = 0, not left


class Accumulated:
    """Gradients and metrics of several backward passes, each of which gives means over rows of its own.

    ``gradients * unit`` is their sum over ``weight`` rows.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self._parameters, self._sums = parameters, Counter[str]()
        self._aside: list[torch.Tensor | None] = []
        self.weight = self.unit = self._next = 0.0

    @property
    def means(self) -> dict[str, float]:
        """The metrics' means; none where nothing was done."""
        return {name: total / self.weight for name, total in self._sums.items()}

    def begin(self) -> None:
        """Begin a step."""
        self.weight = self.unit = self._next = 0.0
        self._aside = []
        self._sums.clear()

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
        """Take what the pass has given."""
        if self._next == 0:
            self._put(self._aside)
            return
        self.weight += self._next
        self._sums.update({name: value * self._next for name, value in metrics.items()})

    def _put(self, gradients: Sequence[torch.Tensor | None]) -> None:
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
