"""Where the batches of a loop come from, and how they are given out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from raykit.engine.training.rows import Ahead, Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a call of ``job.batches`` gives out.

    ``what`` names the data in messages; ``micro_batch`` are the rows of a pass, where a step has several. ``is_undivided``:
    every rank gets the whole batch, and counts like any other.
    """

    source: Source
    batch_size: int
    epochs: int
    what: str
    shared_in_group: bool = False
    is_undivided: bool = False
    micro_batch: int | None = None
    ahead: Ahead | None = None


class Batches:
    """The batches of a loop, to be gone through once.

    ``len()`` is their number, over all epochs; that of an iterable without a length is not known.
    """

    def __init__(self, batches: Iterator[Any], plan: Plan) -> None:
        """Store."""
        self._batches, self._plan = batches, plan

    def __iter__(self) -> Iterator[Any]:
        return self._batches

    def __next__(self) -> Any:
        return next(self._batches)

    def __len__(self) -> int:
        num_steps = self._plan.source.num_steps()
        if num_steps is None:
            raise TypeError(f"The number of batches of a {self._plan.what} is not known before it is gone through.")
        return num_steps
