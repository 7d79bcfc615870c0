"""A world as the host publishes it to the workers. Without torch, which a host does not need."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A world as the host publishes it. ``urgent``: a peer is gone, do not wait for the next commit."""

    number: int
    workers: tuple[str, ...]
    store_port: int
    urgent: bool
