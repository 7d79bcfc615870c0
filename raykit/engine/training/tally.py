"""What ranks add up beside the gradients, in one vector: the rows they count for, what they want, and their metrics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from raykit.errors import InputError

MAX_METRICS = 16


@dataclass(frozen=True, slots=True)
class Tally:
    """One rank's, or the sum of all; metrics are summed over rows, by their places.

    ``synced`` counts ranks whose body made the gradients final itself, ``bodiless`` those on which no body ran; ``rates`` are
    the learning rates of the others.
    """

    weight: float = 0.0
    may_enter_next: float = 0.0
    stops: float = 0.0
    saves: float = 0.0
    synced: float = 0.0
    bodiless: float = 0.0
    rates: float = 0.0
    sums: Sequence[float] = ()

    def vector(self) -> torch.Tensor:
        """Give it to be summed over the ranks, float64."""
        counts = [self.weight, self.may_enter_next, self.stops, self.saves, self.synced, self.bodiless, self.rates]
        none = [0.0] * (MAX_METRICS - len(self.sums))
        return torch.tensor([*counts, *self.sums, *none], dtype=torch.float64)

    @classmethod
    def of(cls, vector: torch.Tensor) -> Tally:
        """Read what was summed."""
        weight, may_enter_next, stops, saves, synced, bodiless, rates, *sums = vector.tolist()
        return cls(weight, may_enter_next, stops, saves, synced, bodiless, rates, sums)

    def means(self, names: Iterable[str]) -> dict[str, float]:
        """Give the metrics' means over all rows, of which there are some."""
        return {name: total / self.weight for name, total in zip(names, self.sums, strict=False)}


def names_of(metrics: Iterable[str], *, before: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Give the places of metrics: first of those named before, then of the others.

    Raises:
        InputError: they are too many.
    """
    names = (*before, *(name for name in metrics if name not in before))
    if len(names) > MAX_METRICS:
        raise InputError(f"{len(names)} metrics were given to commit.", f"Give up to {MAX_METRICS}.")
    return names
