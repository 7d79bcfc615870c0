"""Which elastic training lends slots to whom: a run of a higher priority that waits takes what lower ones can do without."""

from __future__ import annotations

import math
from collections.abc import Iterable
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
    """A lender may have ``most`` slots for now, for the sake of ``borrower``."""

    lender: str
    borrower: str
    most: int


def loans(lenders: Iterable[Lender], wants: Iterable[Want], free: Slots) -> dict[str, Loan]:
    """Say who lends to whom, by lender; who lends nothing may have what it asks for.

    The highest priority is served first, from what is free, then from the lowest priority that can spare a slot; nobody
    lends to its equals, or goes below its least. What a borrower cannot be given is not taken for it: of slots that are
    worth nothing to it (CPUs, where it lacks GPUs) none is asked back.
    """
    spare = {lender.run: lender.num_held - lender.least for lender in lenders}
    from_lowest = sorted(lenders, key=lambda lender: lender.priority)
    found: dict[str, Loan] = {}
    for want in sorted(wants, key=lambda want: -want.priority):
        lacks = _less(want.lacks, free)
        free = _less(free, want.lacks)
        for lender in from_lowest:
            count = 0 if lender.priority >= want.priority else min(spare[lender.run], _num_slots(lacks, lender.slot))
            if count <= 0:
                continue
            spare[lender.run] -= count
            lacks = _less(lacks, (count * lender.slot[0], count * lender.slot[1]))
            found[lender.run] = Loan(lender=lender.run, borrower=want.run, most=lender.least + spare[lender.run])
    return found


def _less(these: Slots, those: Slots) -> Slots:
    return max(0.0, these[0] - those[0]), max(0.0, these[1] - those[1])


def _num_slots(lacks: Slots, slot: Slots) -> int:
    """Give how many slots of a kind it takes to cover the scarcest of what is lacking."""
    scarce = 1 if lacks[1] > EPSILON else 0
    if lacks[scarce] <= EPSILON or not slot[scarce]:
        return 0
    return math.ceil(lacks[scarce] / slot[scarce] - EPSILON)
