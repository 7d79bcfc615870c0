"""Which elastic training lends slots to whom: a run of a higher priority that waits takes what lower ones can do without."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Slots = tuple[float, float]
"""CPU and GPU slots."""

EPSILON = 1e-6  # Ray counts fractions in ten-thousandths


@dataclass(frozen=True, slots=True, kw_only=True)
class Lender:
    """An elastic training: what each of its slots is, how many it holds, and how many it must keep."""

    run: str
    priority: int
    slot: Slots
    num_held: int
    least: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """What a run lacks of what it asks for."""

    run: str
    priority: int
    lacks: Slots


@dataclass(frozen=True, slots=True, kw_only=True)
class Loan:
    """A lender may have ``most`` slots while ``borrower`` waits."""

    lender: str
    borrower: str
    most: int


def loans(lenders: Sequence[Lender], wants: Sequence[Want], free: Slots) -> dict[str, Loan]:
    """Say who may have no more than what, by lender; who is not named may have what it asks for.

    The highest priority is served first, from what is free, then from the lowest priority that can spare a slot; nobody
    lends to its equals, or goes below its least. Of slots that are worth nothing to a borrower (CPUs, where it lacks GPUs)
    none is asked back. While a run waits, nobody of a lower priority gets more of what it waits for than it holds: else a
    slot that was given back could go to the wrong one.
    """
    kept = {lender.run: lender.num_held for lender in lenders}
    from_lowest = sorted(lenders, key=lambda lender: lender.priority)
    borrowers: dict[str, str] = {}
    for want in sorted(wants, key=lambda want: -want.priority):
        lacks = _less(want.lacks, free)
        free = _less(free, want.lacks)
        for lender in from_lowest:
            if lender.priority >= want.priority or not _serves(lender.slot, want.lacks):
                continue
            count = max(0, min(kept[lender.run] - lender.least, _num_slots(lacks, lender.slot)))
            kept[lender.run] -= count
            lacks = _less(lacks, (count * lender.slot[0], count * lender.slot[1]))
            borrowers.setdefault(lender.run, want.run)
    return {run: Loan(lender=run, borrower=borrower, most=kept[run]) for run, borrower in borrowers.items()}


def _serves(slot: Slots, lacks: Slots) -> bool:
    return any(each and lack > EPSILON for each, lack in zip(slot, lacks, strict=True))


def _less(these: Slots, those: Slots) -> Slots:
    return max(0.0, these[0] - those[0]), max(0.0, these[1] - those[1])


def _num_slots(lacks: Slots, slot: Slots) -> int:
    """Give how many slots of a kind it takes to cover the scarcest of what is lacking."""
    scarce = 1 if lacks[1] > EPSILON else 0
    if lacks[scarce] <= EPSILON or not slot[scarce]:
        return 0
    return math.ceil(lacks[scarce] / slot[scarce] - EPSILON)
