"""The slots of a run: one placement group a replica, so that its place outlives its processes."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raykit.commands import HeldSlot
from raykit.engine.run import RunContext
from raykit.events import SlotsHeld, SlotsReleased
from raykit.store.log import Log

PREFIX = "slot"
LEAST_CPUS = 0.001  # a placement group cannot hold nothing
PATIENCE_S = 2.0  # so long another run may hand a slot on before Ray is asked for one that it has no room for
HURRY_S = 0.3
# A nudge that comes before Ray knows that the slot is free is in vain, and keeps it from looking for some 10 ms. It keeps a
# kilobyte of each group that there ever was: so each nudge is twice as far from the next.
NUDGE_AFTER_S, NUDGE_AGAIN_S = 0.005, 0.012
COME_S, COME_LOOK_S = 0.008, 0.002  # a slot that a nudge brings is there two milliseconds after it, or some more
HELD_LOOK_S = 0.2  # a look at one is a call of Ray's, in which the run's host does nothing else
TAKE_WITHIN_S, TAKEN_WITHIN_S = 0.5, 1.0  # who takes a slot in time has said so in the log when it is looked for there
LET_GO_S = 1.0
NOWHERE = {"raykit_nowhere": 1.0}

HandOn = Callable[[HeldSlot, float], None]
"""Tells another run's host that it may take a slot by that time (Unix, s)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _HandedOn:
    """A placement group that another run was told to take, after the event of that number."""

    group: Any
    number: int
    due_s: float


class Slots:
    """Asks for as many slots as the run may use; those that the cluster has no room for yet stay asked for.

    What was asked for is not taken back before it has come, and given back then: of what is taken back while it is placed,
    Ray 2.60 loses the place for good. Whose a placement group is, the log says: the run's that held it last, else that
    which has asked for it.
    """

    def __init__(
        self,
        context: RunContext,
        *,
        num_cpus: float,
        num_gpus: float,
        group: int = 1,
        already_held: frozenset[str] = frozenset(),
    ) -> None:
        """Store; each slot is ``group`` bundles of so many CPUs and GPUs, together on as few nodes as can be."""
        self._context = context
        self._group = group
        self._bundle = {"CPU": num_cpus or LEAST_CPUS} | ({"GPU": num_gpus} if num_gpus else {})
        self._wanted = 0
        self._groups: dict[int, Any] = {}
        self._held: dict[int, HeldSlot] = {}
        self._doubted: set[int] = set()
        self._turns = count()
        self._already_held = already_held
        self._handed_on: deque[_HandedOn] = deque()
        self._is_over = False
        self._had_all_s = time.monotonic()
        self._hurries_until_s = self._nudges_at_s = self._nudged_s = self._looked_at_held_s = 0.0

    @property
    def held(self) -> tuple[int, ...]:
        """The numbers of the slots that are there."""
        return tuple(self._held)

    def take_up(self) -> None:
        """Find the slots that an earlier host held or asked for, whether they have come or not."""
        there = {id_: table["name"] for id_, table in placement_group_table().items() if table["state"] != "REMOVED"}
        holders = {each.group: (run, each.holder) for run, each in _holds(self._context.cluster.log_path) if each.group in there}
        for id_, name in there.items():
            prefix, _, number_asked = name.rpartition(":")[0].rpartition(":")
            run, holder = holders.get(id_, ("", ""))
            if run == self._context.name:
                self._groups[_number(holder)] = _group_of(id_)
            elif not run and prefix == f"{PREFIX}:{self._context.name}":
                self._groups[int(number_asked)] = _group_of(id_)

    def want(self, num_slots: int) -> None:
        """Have so many slots in all, no more: from the next look on they are asked for."""
        self._wanted = num_slots

    def take(self, slot: HeldSlot, by_unix_s: float) -> None:
        """Hold what another run hands on, of which Ray need not know; until then nobody takes it back."""
        if time.time() <= by_unix_s:
            number = self._unused()
            self._groups[number] = _group_of(slot.group)
            self._hold(number, slot)

    def hurry(self) -> None:
        """Know that slots were given back: for a while looks have Ray look too.

        It looks at what waits once a second, and when something is asked for.
        """
        now_s = time.monotonic()
        soon_s, self._nudge_again_s = now_s + NUDGE_AFTER_S, NUDGE_AGAIN_S
        # Who is told twice of the same slot nudges no later for it.
        self._nudges_at_s = min(soon_s, self._nudges_at_s) if self._nudges_at_s > now_s else soon_s
        self._hurries_until_s = now_s + HURRY_S

    @property
    def are_on_the_way(self) -> bool:
        """Whether slots that are wanted may come at any moment."""
        return time.monotonic() < self._hurries_until_s and len(self._held) < self._wanted

    def pause_s(self, otherwise_s: float) -> float:
        """Say how long to wait before the next look: while slots are on their way a look is of use after a nudge."""
        if not self.are_on_the_way:
            return otherwise_s
        now_s = time.monotonic()
        return COME_LOOK_S if now_s - self._nudged_s < COME_S else max(0.0, self._nudges_at_s - now_s)

    def give_back(self, *, used: AbstractSet[int], hand_on: HandOn | None = None) -> None:
        """Release what is held beyond what is wanted, and used by no worker.

        Args:
            used: the numbers of the slots that workers use.
            hand_on: tells a run that waits for such slots; else they go back to Ray.
        """
        num_too_many = max(0, len(self._held) - self._wanted)
        for number in sorted(self._held.keys() - used, reverse=True)[:num_too_many]:
            slot = self._held.pop(number)
            group, released = self._groups.pop(number), SlotsReleased(holder=_holder(number))
            if hand_on is None:
                self._context.emit(released)
                remove_placement_group(group)
            else:  # nobody is told before the log has it: else two would hold it for a moment
                self._context.emit(released, then=partial(self._hand_on, group, partial(hand_on, slot)))

    def look(self) -> None:
        """Ask for what is lacking; take note of slots that have come, and now and then of one that went with its node."""
        if not self._ask() and self.are_on_the_way and time.monotonic() >= self._nudges_at_s:
            self._nudge()
        if self._held and time.monotonic() - self._looked_at_held_s > HELD_LOOK_S:
            self._looked_at_held_s = time.monotonic()
            self._doubted.add(self.held[next(self._turns) % len(self._held)])
        for number in (self._may_come | self._doubted) & self._groups.keys():
            self._look_at(number)
        self._doubted.clear()
        self._take_back()

    def doubt(self) -> None:
        """Know that a node is lost: the next look is at all that is held, too."""
        self._doubted.update(self._held)

    def place(self, number: int, bundle: int = 0, *, within: bool) -> dict[str, Any]:
        """Give the options of an actor in a slot that is held.

        Args:
            number: the slot's.
            bundle: which of its bundles.
            within: the actor has what the bundle reserves, and ends with the slot; else it is only on the same node, and
                outlives the slot.
        """
        if within:
            return {"placement_group": self._groups[number], "placement_group_bundle_index": bundle}
        return {"scheduling_strategy": NodeAffinitySchedulingStrategy(self._held[number].nodes[bundle], soft=False)}

    def release(self) -> None:
        """Give all slots back, also those that never came; it is the run's end that says so.

        A run that holds nothing and goes on would seem to want slots, and be lent some.
        """
        self._is_over = True
        deadline_s = time.monotonic() + LET_GO_S
        while self._may_come and self._room() and time.monotonic() < deadline_s:
            time.sleep(COME_LOOK_S)
            for number in self._may_come:
                self._look_at(number)
        for number in sorted(self._groups, key=self._held.__contains__):
            remove_placement_group(self._groups[number])
        self._groups, self._held = {}, {}
        while self._handed_on:  # who was told has its time, also when the run is over
            time.sleep(max(0.0, self._handed_on[0].due_s - time.monotonic()))
            self._take_back()

    @property
    def _may_come(self) -> set[int]:
        """The numbers of those that are asked for and not there."""
        return self._groups.keys() - self._held.keys()

    def _ask(self) -> bool:
        """Ask Ray for what is lacking, as far as it has room; for the rest after a while. Say whether anything was asked for."""
        num_lacking, now_s = self._wanted - len(self._groups), time.monotonic()
        if num_lacking <= 0:
            self._had_all_s = now_s
            return False
        if now_s - self._had_all_s < PATIENCE_S:
            num_lacking = min(num_lacking, self._room())
        if num_lacking:  # what is asked for makes Ray look
            self._hurries_until_s = now_s + HURRY_S
            self._nudged_s, self._nudges_at_s, self._nudge_again_s = now_s, now_s + NUDGE_AGAIN_S, 2 * NUDGE_AGAIN_S
        for _ in range(num_lacking):
            number = self._unused()
            name = f"{PREFIX}:{self._context.name}:{number}:{secrets.token_hex(4)}"  # a number may be another's name by now
            self._groups[number] = placement_group([self._bundle] * self._group, strategy="PACK", name=name, lifetime="detached")
        return num_lacking > 0

    def _room(self) -> int:
        """Give how many slots Ray has room for now, by what its nodes have together."""
        free = ray.available_resources()
        return min(int(free.get(kind, 0.0) / amount / self._group + 1e-6) for kind, amount in self._bundle.items())

    def _nudge(self) -> None:
        """Have Ray look at what waits, by asking for something that no node has."""
        if self._may_come:
            remove_placement_group(placement_group([NOWHERE]))
            self._nudged_s = time.monotonic()
        self._nudges_at_s = time.monotonic() + self._nudge_again_s
        self._nudge_again_s *= 2

    def _look_at(self, number: int) -> None:
        table = placement_group_table(self._groups[number])
        slot = self._slot_of(self._groups[number], table) if table.get("state") == "CREATED" else None
        if number in self._held and (slot is None or self._held[number].nodes != slot.nodes):
            del self._held[number]
            self._context.emit(SlotsReleased(holder=_holder(number)))
        if slot is not None and number not in self._held:
            self._hold(number, slot)

    def _hold(self, number: int, slot: HeldSlot) -> None:
        self._held[number] = slot
        holder = _holder(number)
        if holder not in self._already_held:
            self._context.emit(SlotsHeld(holder=holder, num_cpus=slot.num_cpus, num_gpus=slot.num_gpus, group=slot.group))
        self._already_held -= {holder}

    def _slot_of(self, group: Any, table: dict[str, Any]) -> HeldSlot:
        """Give a slot as Ray tells of it: of one that was handed on it may have more CPUs than were asked for."""
        bundles = table["bundles"].values()
        return HeldSlot(
            group=group.id.hex(),
            nodes=tuple(table["bundles_to_node_id"][bundle] for bundle in range(self._group)),
            num_cpus=sum(num_cpus for each in bundles if (num_cpus := each.get("CPU", 0.0)) > LEAST_CPUS),
            num_gpus=sum(each.get("GPU", 0.0) for each in bundles),
        )

    def _hand_on(self, group: Any, tell: Callable[[float], None], number: int) -> None:
        if self._is_over:  # nobody would look whether it was taken
            remove_placement_group(group)
            return
        self._handed_on.append(_HandedOn(group=group, number=number, due_s=time.monotonic() + TAKEN_WITHIN_S))
        tell(time.time() + TAKE_WITHIN_S)

    def _take_back(self) -> None:
        """Give back to Ray what was to be taken by now and was not: who was told may have died."""
        now_s = time.monotonic()
        if not self._handed_on or self._handed_on[0].due_s > now_s:
            return
        taken = {each.group for _, each in _holds(self._context.cluster.log_path, after=self._handed_on[0].number)}
        while self._handed_on and self._handed_on[0].due_s <= now_s:
            group = self._handed_on.popleft().group
            if group.id.hex() not in taken:
                remove_placement_group(group)

    def _unused(self) -> int:
        return next(number for number in count() if number not in self._groups)


def _holds(log_path: Path, *, after: int = 0) -> Iterator[tuple[str, SlotsHeld]]:
    """Give what runs have held, each with the run, from the earliest on."""
    log = Log(log_path)
    try:
        for page in log.pages(kinds=(SlotsHeld,), after=after):
            for record in page:
                assert isinstance(record.event, SlotsHeld)
                yield record.run, record.event
    finally:
        log.close()


def _group_of(id_: str) -> PlacementGroup:
    return PlacementGroup(ray.PlacementGroupID(bytes.fromhex(id_)))


def _holder(number: int) -> str:
    return f"slot {number + 1}"


def _number(holder: str) -> int:
    return int(holder.removeprefix("slot ")) - 1
