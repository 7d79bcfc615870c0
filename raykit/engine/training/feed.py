"""Which rows a step sees: a pure function of (seed, epoch, step), whatever the world was before.

So no change of the world can lose or double a row: a step that is redone is given the same global batch again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

Indices = np.ndarray[Any, Any]

FEWEST_ROWS = 2
WINDOW_BLOCKS = 4
"""Blocks whose rows are mixed: so many are held in memory while a stored set is read in its order."""


@lru_cache(maxsize=2)
def epoch_order(num_rows: int, seed: int, epoch: int, blocks: tuple[int, ...] = ()) -> Indices:
    """Give the order of rows in an epoch: a permutation of ``range(num_rows)``, int64.

    Args:
        num_rows: of the whole set.
        seed: of the loop.
        epoch: counted from zero.
        blocks: sizes of the blocks in which the set is stored. With them blocks come in a random order, and rows are
            mixed within ``WINDOW_BLOCKS`` of them, so that no block is read twice an epoch.
    """
    random = np.random.default_rng([seed, epoch])
    if not blocks:
        return random.permutation(num_rows)
    begins = np.concatenate([[0], np.cumsum(blocks)])
    places = random.permutation(len(blocks))
    windows = [places[at : at + WINDOW_BLOCKS] for at in range(0, len(places), WINDOW_BLOCKS)]
    return np.concatenate(
        [random.permutation(np.concatenate([np.arange(begins[each], begins[each + 1]) for each in window])) for window in windows]
    )


def steps_per_epoch(num_rows: int, batch_size: int, *, drop_last: bool = False) -> int:
    """Return the number of global batches of an epoch; the last may be short, unless it is dropped."""
    return num_rows // batch_size if drop_last else math.ceil(num_rows / batch_size)


def global_batch(
    num_rows: int, batch_size: int, seed: int, step: int, blocks: tuple[int, ...] = (), *, drop_last: bool = False
) -> Indices:
    """Return the indices of the global batch of ``step`` (counted from the loop's first)."""
    epoch, place = divmod(step, steps_per_epoch(num_rows, batch_size, drop_last=drop_last))
    return epoch_order(num_rows, seed, epoch, blocks)[place * batch_size : (place + 1) * batch_size]


def share(rows: Any, rank: int, world_size: int) -> Any:
    """Give a rank's part of a global batch (an array or a list): sizes differ by one at most, rank 0's is the largest."""
    return rows[rank::world_size]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How a rank's part is cut from a global batch: first among replicas, then among the ranks of the replica.

    Every rank runs the loop's body for every batch. Where a batch has too few rows for all replicas, those that have none
    left run it on the first replica's rows, which then count for nothing (``weight`` 0).

    ``is_shared``: all ranks of a replica take the same rows, as tensor parallel wants it.
    ``min_rows``: no replica gets fewer rows of a batch that has as many, see :func:`min_rows`.
    """

    rank: int
    world_size: int
    group_size: int = 1
    is_shared: bool = False
    min_rows: int = 1

    def of(self, rows: Any) -> Any:
        """Return this rank's rows, at least one."""
        ours = self.of_replica(rows)
        if self.is_shared:
            return ours
        mine = share(ours, self.rank % self.group_size, self.group_size)
        return mine if len(mine) else ours[:1]

    def of_replica(self, rows: Any) -> Any:
        """Return the rows of this rank's replica."""
        num_taking_part = self._num_taking_part(rows)
        return share(rows, self._replica if self._replica < num_taking_part else 0, num_taking_part)

    def replica_weight(self, rows: Any) -> float:
        """Return how many rows of the global batch this rank's replica counts for."""
        return float(len(self.of_replica(rows))) if self._replica < self._num_taking_part(rows) else 0.0

    def weight(self, rows: Any) -> float:
        """Return how many rows of the global batch this rank counts for: the sum over all ranks is the batch."""
        if self._replica >= self._num_taking_part(rows):
            return 0.0
        ours = self.of_replica(rows)
        return len(ours) / self.group_size if self.is_shared else len(share(ours, self.rank % self.group_size, self.group_size))

    @property
    def _replica(self) -> int:
        return self.rank // self.group_size

    def _num_taking_part(self, rows: Any) -> int:
        return min(self.world_size // self.group_size, max(1, len(rows) // self.min_rows))


def min_rows(batch_size: int, num_replicas: int, *, normalizes_batches: bool) -> int:
    """Return the fewest rows that a replica gets of a batch, unless the batch itself has fewer.

    What runs on a share of a whole batch must run on the last, short one too: a standard deviation of one row is no number,
    so shares of one row are given out only where whole batches have such shares. A model with batch normalization cannot
    train on one row at all.
    """
    return FEWEST_ROWS if normalizes_batches or batch_size // num_replicas >= FEWEST_ROWS else 1
