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


def steps_per_epoch(num_rows: int, batch_size: int) -> int:
    """Give the number of global batches; the last may be short."""
    return math.ceil(num_rows / batch_size)


def global_batch(num_rows: int, batch_size: int, seed: int, step: int, blocks: tuple[int, ...] = ()) -> Indices:
    """Give the indices of the global batch of ``step`` (counted from the loop's first)."""
    epoch, place = divmod(step, steps_per_epoch(num_rows, batch_size))
    return epoch_order(num_rows, seed, epoch, blocks)[place * batch_size : (place + 1) * batch_size]


def share(rows: Any, rank: int, world_size: int) -> Any:
    """Give a rank's part of a global batch (an array or a list): sizes differ by one at most, rank 0's is the largest."""
    return rows[rank::world_size]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How a rank's part is cut from a global batch: first among replicas, then among the ranks of the replica.

    ``is_shared``: all ranks of a replica take the same rows, as tensor parallel wants it.
    """

    rank: int
    world_size: int
    group_size: int = 1
    is_shared: bool = False

    def of(self, rows: Any) -> Any:
        """Give this rank's rows. One that would have none in a replica that has some stands in with a row of weight zero,

        since the ranks of a replica run the model together.
        """
        ours = self.of_replica(rows)
        if self.is_shared:
            return ours
        mine = share(ours, self.rank % self.group_size, self.group_size)
        return mine if len(mine) else ours[:1]

    def of_replica(self, rows: Any) -> Any:
        """Give the rows of this rank's replica."""
        return share(rows, self.rank // self.group_size, self.world_size // self.group_size)

    def weight(self, rows: Any) -> float:
        """Say for how many rows of the global batch this rank counts: the sum over all ranks is the batch."""
        ours = self.of_replica(rows)
        return len(ours) / self.group_size if self.is_shared else len(share(ours, self.rank % self.group_size, self.group_size))
