"""Which elastic training lends slots to whom: higher priorities take what lower ones can do without, equals share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
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
    """What a run lacks of what it asks for; with less than ``needs`` more it can do nothing. ``held`` is what it has."""

    run: str
    priority: int
    lacks: Slots
    needs: Slots
    held: Slots = (0.0, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loan:
    """A lender may have ``most`` slots while ``borrower`` waits."""

    lender: str
    borrower: str
    most: int


def loans(lenders: Sequence[Lender], wants: Iterable[Want], free: Slots) -> dict[str, Loan]:
    """Say who may have no more than what, by lender; who is not named may have what it asks for.

    The highest priority is served first, from what is free, then from the lowest priority that can spare a slot. Equals
    lend until the other has as much. Nobody goes below its least, and nothing is taken for a run that could not use it: with
    CPUs where it lacks GPUs, or with less than it needs. While a run waits, nobody of a lower priority, and no equal that has
    more, gets more of what it waits for: else a slot that was given back could go to the wrong one.
    """
    kept = {lender.run: lender.num_held for lender in lenders}
    borrowers: dict[str, str] = {}
    for want in sorted(wants, key=lambda want: -want.priority):
        asked = [lender for lender in lenders if _gives_way(lender, want, kept[lender.run])]
        offers = _offers(asked, kept, want, _less(want.lacks, free))
        offered = [sum(offers[lender.run] * lender.slot[kind] for lender in asked) for kind in (0, 1)]
        is_enough = all(free[kind] + offered[kind] > want.needs[kind] - EPSILON for kind in (0, 1))
        for lender in asked:
            kept[lender.run] -= offers[lender.run] if is_enough else 0
            borrowers.setdefault(lender.run, want.run)
        free = _less(free, want.lacks)
    return {run: Loan(lender=run, borrower=borrower, most=kept[run]) for run, borrower in borrowers.items()}


def _gives_way(lender: Lender, want: Want, num_kept: int) -> bool:
    """Say whether a training stands behind a run that waits, for slots that both can use."""
    scarce = _scarce(want.lacks)
    has_more = num_kept * lender.slot[scarce] > want.held[scarce] + EPSILON
    stands_behind = lender.priority < want.priority or (lender.priority == want.priority and has_more)
    serves = any(each and lack > EPSILON for each, lack in zip(lender.slot, want.lacks, strict=True))
    return stands_behind and serves and lender.run != want.run


def _offers(asked: Sequence[Lender], kept: dict[str, int], want: Want, missing: Slots) -> dict[str, int]:
    """Give how many slots each can spare of what is missing, the lowest priority first, then who has most."""
    offers: dict[str, int] = {}
    has = want.held[_scarce(want.lacks)]
    for lender in sorted(asked, key=lambda lender: (lender.priority, -kept[lender.run])):
        scarce = _scarce(missing)
        unit = lender.slot[scarce]
        count = math.ceil(missing[scarce] / unit - EPSILON) if unit else 0
        count = max(0, min(count, kept[lender.run] - lender.least))
        if lender.priority == want.priority and count:
            count = min(count, max(0, math.floor((kept[lender.run] - has / unit) / 2 + EPSILON)))
        offers[lender.run] = count
        missing = _less(missing, (count * lender.slot[0], count * lender.slot[1]))
        has += count * unit
    return offers


def _scarce(lacks: Slots) -> int:
    """Give the kind of slot that decides: GPUs where some are lacking."""
    return 1 if lacks[1] > EPSILON else 0


def _less(these: Slots, those: Slots) -> Slots:
    return max(0.0, these[0] - those[0]), max(0.0, these[1] - those[1])
