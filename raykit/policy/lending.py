"""Which elastic training lends slots to whom: higher priorities take what lower ones can do without, equals share."""

from __future__ import annotations

import heapq
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
    book = _Book(lenders)
    for want in sorted(wants, key=lambda want: -want.priority):
        behind = [group for group in book.groups if group.priority <= want.priority and group.serves(want.lacks)]
        offers = book.offers(behind, want, _less(want.lacks, free))
        offered = [sum(count * lenders[place].slot[kind] for place, count in offers.items()) for kind in (0, 1)]
        is_enough = all(free[kind] + offered[kind] > want.needs[kind] - EPSILON for kind in (0, 1))
        book.ask(behind, want)
        book.settle(offers, is_taken=is_enough)
        free = _less(free, want.lacks)
    return book.loans()


@dataclass(slots=True)
class _Group:
    """Lenders of a priority whose slots are of the same kinds, by their places.

    ``spare`` is a heap of those who can spare a slot, who has kept most first; ``unasked`` has those whom nobody has asked
    yet, once for each kind of slot, who has most of it last.
    """

    priority: int
    kinds: tuple[bool, bool]
    spare: list[tuple[int, int]]
    unasked: tuple[list[int], list[int]]

    def serves(self, lacks: Slots) -> bool:
        return any(has and lack > EPSILON for has, lack in zip(self.kinds, lacks, strict=True))


class _Book:
    """What lenders have kept, and for whose sake. A want looks at those who can still give, not at all."""

    def __init__(self, lenders: Sequence[Lender]) -> None:
        self._lenders = lenders
        self._kept = [lender.num_held for lender in lenders]
        self._borrowers: dict[int, str] = {}
        places: dict[tuple[int, tuple[bool, bool]], list[int]] = {}
        for place, lender in enumerate(lenders):
            places.setdefault((lender.priority, (lender.slot[0] > 0, lender.slot[1] > 0)), []).append(place)
        self.groups = [self._group(priority, kinds, mine) for (priority, kinds), mine in sorted(places.items())]
        self._group_of = {place: group for group in self.groups for place in group.unasked[0]}

    def _group(self, priority: int, kinds: tuple[bool, bool], places: list[int]) -> _Group:
        spare = [(-self._kept[place], place) for place in places if self._kept[place] > self._lenders[place].least]
        heapq.heapify(spare)
        by_cpus, by_gpus = (sorted(places, key=lambda place: (self._amount(place, kind), -place)) for kind in (0, 1))
        return _Group(priority, kinds, spare, (by_cpus, by_gpus))

    def _amount(self, place: int, kind: int) -> float:
        return self._kept[place] * self._lenders[place].slot[kind]

    def offers(self, behind: Sequence[_Group], want: Want, missing: Slots) -> dict[int, int]:
        """Give how many slots each can spare of what is missing, the lowest priority first, then who has most.

        Who was looked at is taken out of the heaps until :meth:`settle`.
        """
        offers: dict[int, int] = {}
        scarce = _scarce(want.lacks)
        has = want.held[scarce]
        for priority in sorted({group.priority for group in behind}):
            heaps = [group.spare for group in behind if group.priority == priority]
            while max(missing) > EPSILON and (full := [heap for heap in heaps if heap]):
                _, place = heapq.heappop(min(full, key=lambda heap: heap[0]))
                lender, kind = self._lenders[place], _scarce(missing)
                unit, most = lender.slot[kind], self._kept[place] - lender.least
                if priority == want.priority:
                    has_more = self._amount(place, scarce) > want.held[scarce] + EPSILON
                    most = min(most, math.floor((self._kept[place] - has / unit) / 2 + EPSILON)) if unit and has_more else 0
                count = min(math.ceil(missing[kind] / unit - EPSILON), most) if unit and lender.run != want.run else 0
                offers[place] = max(0, count)
                missing = _less(missing, (offers[place] * lender.slot[0], offers[place] * lender.slot[1]))
                has += offers[place] * unit
        return offers

    def ask(self, behind: Sequence[_Group], want: Want) -> None:
        """Know that those who stand behind a run give way to it, if to nobody before."""
        kind = _scarce(want.lacks)
        for group in behind:
            places, mine = group.unasked[kind], None
            least = -1.0 if group.priority < want.priority else want.held[kind] + EPSILON
            while places and (places[-1] in self._borrowers or self._amount(places[-1], kind) > least):
                place = places.pop()
                if self._lenders[place].run == want.run:
                    mine = place
                else:
                    self._borrowers.setdefault(place, want.run)
            if mine is not None:
                places.append(mine)

    def settle(self, offers: dict[int, int], *, is_taken: bool) -> None:
        """Take what was offered, or leave it."""
        for place, count in offers.items():
            self._kept[place] -= count if is_taken else 0
            if self._kept[place] > self._lenders[place].least:
                heapq.heappush(self._group_of[place].spare, (-self._kept[place], place))

    def loans(self) -> dict[str, Loan]:
        """Give a loan for each lender that was asked."""
        found = sorted(self._borrowers.items())
        return {
            (run := self._lenders[place].run): Loan(lender=run, borrower=borrower, most=self._kept[place])
            for place, borrower in found
        }


def _scarce(lacks: Slots) -> int:
    """Give the kind of slot that decides: GPUs where some are lacking."""
    return 1 if lacks[1] > EPSILON else 0


def _less(these: Slots, those: Slots) -> Slots:
    return max(0.0, these[0] - those[0]), max(0.0, these[1] - those[1])
