"""What to do next, as a policy says it. The host carries it out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Start this many workers: ranks in slots that are held, spares beside them."""

    num_ranks: int = 0
    num_spares: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """Form a world of these workers, rank by rank."""

    workers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """End these workers: they are in no world, and hold what the run shall not use any more."""

    workers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp:
    """End the run: it cannot go on."""

    reason: str


Decision = Start | Form | End | GiveUp
