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
    more, gets more of what it waits for: else a slot that was given back could go to the wrong one. But what is free beyond
    that goes to those who wait behind it.
    """
    book = _Book(lenders)
    for want in sorted(wants, key=lambda want: (-want.priority, want.held[_scarce(want.lacks)])):
        behind = [group for group in book.groups if group.priority <= want.priority and group.serves(want.lacks)]
        offers = book.offers(behind, want, _less(want.lacks, free))
        offered = [sum(count * lenders[place].slot[kind] for place, count in offers.items()) for kind in (0, 1)]
        is_enough = all(free[kind] + offered[kind] > want.needs[kind] - EPSILON for kind in (0, 1))
        book.ask(behind, want)
        book.settle(offers, is_taken=is_enough)
        book.grant(want, free)
        free = _less(free, want.lacks)
    return book.loans()


@dataclass(slots=True)
class _Group:
    """Lenders of one priority and one sort of slot, by their places.

    ``spare`` is a heap of those who can spare a slot, who has kept most first; ``unasked`` has those whom nobody has asked
    yet, who has most last.
    """

    priority: int
    slot: Slots
    spare: list[tuple[int, int]]
    unasked: list[int]

    def serves(self, lacks: Slots) -> bool:
        return any(each > 0 and lack > EPSILON for each, lack in zip(self.slot, lacks, strict=True))


class _Book:
    """What lenders have kept, and for whose sake. A want looks at those who can still give, not at all."""

    def __init__(self, lenders: Sequence[Lender]) -> None:
        self._lenders = lenders
        self._kept = [lender.num_held for lender in lenders]
        self._borrowers: dict[int, str] = {}
        self._places = {lender.run: place for place, lender in enumerate(lenders)}
        self._granted: dict[int, int] = {}
        self._content: set[int] = set()
        places: dict[tuple[int, Slots], list[int]] = {}
        for place, lender in enumerate(lenders):
            places.setdefault((lender.priority, lender.slot), []).append(place)
        self.groups = [self._group(priority, slot, mine) for (priority, slot), mine in sorted(places.items())]
        self._group_of = {place: group for group in self.groups for place in group.unasked}

    def _group(self, priority: int, slot: Slots, places: list[int]) -> _Group:
        spare = [(-self._kept[place], place) for place in places if self._kept[place] > self._lenders[place].least]
        heapq.heapify(spare)
        return _Group(priority, slot, spare, sorted(places, key=lambda place: (self._kept[place], -place)))

    def offers(self, behind: Sequence[_Group], want: Want, missing: Slots) -> dict[int, int]:
        """Give how many slots each can spare of what is missing, the lowest priority first, then who has most.

        Who was looked at is taken out of the heaps until :meth:`settle`.
        """
        offers: dict[int, int] = {}
        has = want.held[_scarce(want.lacks)]
        for priority in sorted({group.priority for group in behind}):
            open_groups = [group for group in behind if group.priority == priority and group.spare]
            while max(missing) > EPSILON and open_groups:
                group = min(open_groups, key=lambda group: group.spare[0])
                _, place = heapq.heappop(group.spare)
                count = self._offer(place, want, missing, has)
                offers[place] = count
                has += count * group.slot[_scarce(missing)]
                missing = _less(missing, (count * group.slot[0], count * group.slot[1]))
                # Who has kept less of the same slots could spare no more.
                is_over = not group.spare or (count == 0 and self._lenders[place].run != want.run)
                open_groups = [each for each in open_groups if each is not group or not is_over]
        return offers

    def _offer(self, place: int, want: Want, missing: Slots, has: float) -> int:
        """Give how many slots one can spare; to an equal no more than half of what it has more."""
        lender, kept = self._lenders[place], self._kept[place]
        unit = lender.slot[_scarce(missing)]
        if not unit or lender.run == want.run:
            return 0
        most = kept - lender.least
        if lender.priority == want.priority:
            most = min(most, math.floor((kept - has / unit) / 2 + EPSILON)) if self._has_more(lender.slot, kept, want) else 0
        return max(0, min(math.ceil(missing[_scarce(missing)] / unit - EPSILON), most))

    @staticmethod
    def _has_more(slot: Slots, num_slots: int, want: Want) -> bool:
        scarce = _scarce(want.lacks)
        return num_slots * slot[scarce] > want.held[scarce] + EPSILON

    def ask(self, behind: Sequence[_Group], want: Want) -> None:
        """Know that those who stand behind a run give way to it, if to nobody before."""
        for group in behind:
            mine = None
            while (places := group.unasked) and (
                places[-1] in self._borrowers
                or group.priority < want.priority
                or self._has_more(group.slot, self._kept[places[-1]], want)
            ):
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

    def grant(self, want: Want, free: Slots) -> None:
        """Let one who waits, and lends too, have as many more of the free slots as there are for it."""
        place = self._places.get(want.run)
        if place is None:
            return
        slot = self._lenders[place].slot
        lacking = max(round(lack / each) for lack, each in zip(want.lacks, slot, strict=True) if each)
        granted = min(math.floor(room / each + EPSILON) for room, each in zip(free, slot, strict=True) if each)
        self._granted[place] = min(granted, lacking)
        if granted >= lacking:
            self._content.add(place)

    def loans(self) -> dict[str, Loan]:
        """Give a loan for each lender that was asked, and may not have all that it asks for itself."""
        found: dict[str, Loan] = {}
        for place, borrower in sorted(self._borrowers.items()):
            lender = self._lenders[place]
            if place not in self._content or self._kept[place] < lender.num_held:
                most = self._kept[place] + self._granted.get(place, 0)
                found[lender.run] = Loan(lender=lender.run, borrower=borrower, most=most)
        return found


def _scarce(lacks: Slots) -> int:
    """Give the kind of slot that decides: GPUs where some are lacking."""
    return 1 if lacks[1] > EPSILON else 0


def _less(these: Slots, those: Slots) -> Slots:
    return max(0.0, these[0] - those[0]), max(0.0, these[1] - those[1])
