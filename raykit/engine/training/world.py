"""A world as the host publishes it to the workers. Without torch, which a host does not need."""

from __future__ import annotations

from dataclasses import dataclass

Address = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A world as the host publishes it: ``workers`` by rank, each ``group_size`` of them a replica.

    ``urgent``: a peer is gone, do not wait for the next commit. ``final``: meet, save what is furthest, and end.
    """

    number: int
    workers: tuple[str, ...]
    store: Address
    urgent: bool
    group_size: int = 1
    final: bool = False

    def column_of(self, worker: str) -> list[int]:
        """Give the ranks that hold the same part of the model as ``worker``, one in each replica."""
        return list(range(self.workers.index(worker) % self.group_size, len(self.workers), self.group_size))
