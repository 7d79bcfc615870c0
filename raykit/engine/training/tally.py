"""What ranks add up beside the gradients, in one vector: the rows they count for, what they want, and their metrics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import torch

from raykit.errors import InputError

MAX_METRICS = 16


@dataclass(frozen=True, slots=True)
class Tally:
    """One rank's numbers, or their sums over all ranks.

    Attributes:
        stale: ranks on which a gradient came too late for its bucket; set while it is reduced, so it stands first.
        weight: rows that the gradients count for.
        may_enter_next: ranks that can enter the next world.
        stops: ranks that want the loop to end.
        saves: 1 where rank 0 wants a checkpoint.
        skipped: ranks whose body ended without a backward pass.
        synced: in a step of micro-batches, ranks whose body made the gradients final itself.
        bodiless: in a step of micro-batches, ranks on which no body ran.
        rates: settings of the optimizers (learning rates and the like) of ranks on which a body ran.
        place: where in the loop the rank is; ``place_squared`` its square, by which all see whether it is one place.
        buffers: which buffers were written to; ``buffers_squared`` likewise.
        num_made: ranks whose loop changed the gradients of the last step after they were reduced; ``made`` are numbers that
            tell what they have made of them, equal on all ranks if the gradients were.
        metric_weight: rows that the metrics are of.
        sums: of metrics over rows, by their places.
    """

    stale: float = 0.0
    weight: float = 0.0
    may_enter_next: float = 0.0
    stops: float = 0.0
    saves: float = 0.0
    skipped: float = 0.0
    synced: float = 0.0
    bodiless: float = 0.0
    rates: float = 0.0
    place: float = 0.0
    place_squared: float = 0.0
    buffers: float = 0.0
    buffers_squared: float = 0.0
    num_made: float = 0.0
    made: float = 0.0
    metric_weight: float = 0.0
    sums: Sequence[float] = ()

    def vector(self) -> torch.Tensor:
        """Return it to be summed over the ranks, float64."""
        counts = [getattr(self, name) for name in COUNTS]
        none = [0.0] * (MAX_METRICS - len(self.sums))
        return torch.tensor([*counts, *self.sums, *none], dtype=torch.float64)

    @classmethod
    def of(cls, vector: torch.Tensor) -> Tally:
        """Read what was summed."""
        numbers = vector.tolist()
        return cls(**dict(zip(COUNTS, numbers, strict=False)), sums=numbers[-MAX_METRICS:])

    def means(self, names: Iterable[str]) -> dict[str, float]:
        """Return the metrics' means over the rows that they are of, of which there are some."""
        return {name: total / self.metric_weight for name, total in zip(names, self.sums, strict=False)}


COUNTS = tuple(each.name for each in fields(Tally) if each.name != "sums")


def is_one_value(total: float, total_of_squares: float, num_ranks: int) -> bool:
    """Return whether all ranks had the same number, a whole one below 2**20, by its sum and the sum of its square."""
    return total * total == total_of_squares * num_ranks


def names_of(metrics: Iterable[str], *, before: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the places of metrics: first of those named before, then of the others.

    Raises:
        InputError: they are too many.
    """
    names = (*before, *(name for name in metrics if name not in before))
    if len(names) > MAX_METRICS:
        raise InputError(f"{len(names)} metrics were given to commit.", f"Give up to {MAX_METRICS}.")
    return names
