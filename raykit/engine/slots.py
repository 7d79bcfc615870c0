"""The slots of a run: one placement group a replica, so that its place outlives its processes."""

from __future__ import annotations

import time
from collections.abc import Set as AbstractSet
from itertools import count
from typing import Any

import ray
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raykit.engine.run import RunContext
from raykit.events import SlotsHeld, SlotsReleased

LEAST_CPUS = 0.001  # a placement group cannot hold nothing
HURRY_S = 0.3
# A nudge that comes before Ray knows that the slot is free is in vain, and keeps it from looking for some 10 ms. It keeps a
# kilobyte of each group that there ever was: so each nudge is twice as far from the next.
NUDGE_AFTER_S, NUDGE_AGAIN_S = 0.005, 0.012
COME_S, COME_LOOK_S = 0.008, 0.002  # a slot that a nudge brings is there two milliseconds after it, or some more
HELD_LOOK_S = 1.0  # each look at a slot takes Ray a millisecond or two
NOWHERE = {"raykit_nowhere": 1.0}


class Slots:
    """Asks for as many slots as the run may use; those that the cluster has no room for yet stay asked for."""

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
        self._num_cpus, self._num_gpus, self._group = num_cpus, num_gpus, group
        self._groups: dict[int, Any] = {}
        self._held: dict[int, tuple[str, ...]] = {}
        self._already_held = already_held
        self._hurries_until_s = self._nudges_at_s = self._nudged_s = self._looked_at_held_s = 0.0
        self._nudge_again_s = NUDGE_AGAIN_S
        self._prefix = f"slot:{context.name}"

    @property
    def held(self) -> tuple[int, ...]:
        """The numbers of the slots that are there."""
        return tuple(self._held)

    def take_up(self) -> None:
        """Find the slots that an earlier host asked for, whether they have come or not."""
        for group in placement_group_table().values():
            prefix, _, number = group["name"].rpartition(":")
            if prefix == self._prefix and group["state"] != "REMOVED":
                self._groups[int(number)] = ray.util.get_placement_group(group["name"])

    def ask(self, num_slots: int) -> None:
        """Ask for so many slots in all; returns at once."""
        bundle = {"CPU": self._num_cpus or LEAST_CPUS} | ({"GPU": self._num_gpus} if self._num_gpus else {})
        unused = (number for number in count() if number not in self._groups)
        while len(self._groups) < num_slots:
            number = next(unused)
            name = f"{self._prefix}:{number}"
            self._groups[number] = placement_group([bundle] * self._group, strategy="PACK", name=name, lifetime="detached")

    def hurry(self) -> None:
        """Know that slots were given back: for a while each look has Ray look too.

        It looks at what waits once a second, and when something new is asked for. That is something no node has: what could
        be placed is not to be taken back while it is (Ray 2.60 then loses the slot).
        """
        now_s = time.monotonic()
        soon_s, self._nudge_again_s = now_s + NUDGE_AFTER_S, NUDGE_AGAIN_S
        # Who is told twice of the same slot nudges no later for it.
        self._nudges_at_s = min(soon_s, self._nudges_at_s) if self._nudges_at_s > now_s else soon_s
        self._hurries_until_s = now_s + HURRY_S

    @property
    def are_on_the_way(self) -> bool:
        """Whether slots that were asked for may come at any moment."""
        return time.monotonic() < self._hurries_until_s and len(self._held) < len(self._groups)

    def pause_s(self, otherwise_s: float) -> float:
        """Say how long to wait before the next look: while slots are on their way a look is of use after a nudge."""
        if not self.are_on_the_way:
            return otherwise_s
        now_s = time.monotonic()
        return COME_LOOK_S if now_s - self._nudged_s < COME_S else max(0.0, self._nudges_at_s - now_s)

    @property
    def have_all_come(self) -> bool:
        """Whether none is waited for; Ray 2.60 can lose a slot that is given back while it is placed."""
        return len(self._held) == len(self._groups)

    def give_back(self, num_slots: int, *, used: AbstractSet[int]) -> None:
        """Keep so many slots, and release of the others those that no worker uses, first those that never came."""
        for number in sorted(self._groups, key=lambda number: (number not in self._held, number), reverse=True):
            if len(self._groups) <= num_slots:
                return
            if number not in used:
                if self._held.pop(number, None) is not None:
                    self._context.emit(SlotsReleased(holder=_holder(number)))
                remove_placement_group(self._groups.pop(number))

    def look(self) -> None:
        """Take note of slots that have come, and now and then of those that went with their node, or have come again elsewhere."""
        if self.are_on_the_way and time.monotonic() >= self._nudges_at_s:
            remove_placement_group(placement_group([NOWHERE]))
            self._nudged_s = time.monotonic()
            self._nudges_at_s = self._nudged_s + self._nudge_again_s
            self._nudge_again_s *= 2
        looks_at_held = time.monotonic() - self._looked_at_held_s > HELD_LOOK_S
        if looks_at_held:
            self._looked_at_held_s = time.monotonic()
        for number, group in self._groups.items():
            if number in self._held and not looks_at_held:
                continue
            table = placement_group_table(group)
            is_there = table["state"] == "CREATED"
            nodes = tuple(table["bundles_to_node_id"][bundle] for bundle in range(self._group)) if is_there else ()
            if number in self._held and self._held[number] != nodes:
                del self._held[number]
                self._already_held -= {_holder(number)}
                self._context.emit(SlotsReleased(holder=_holder(number)))
            if is_there and number not in self._held:
                self._held[number] = nodes
                if _holder(number) not in self._already_held:
                    self._context.emit(self._held_event(number))

    def doubt(self) -> None:
        """Know that a node is lost: the next look is at what is held, too."""
        self._looked_at_held_s = 0.0

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
        return {"scheduling_strategy": NodeAffinitySchedulingStrategy(self._held[number][bundle], soft=False)}

    def release(self) -> None:
        """Give all slots back, also those that never came; it is the run's end that says so.

        A run that holds nothing and goes on would seem to want slots, and be lent some.
        """
        for group in self._groups.values():
            remove_placement_group(group)
        self._groups, self._held = {}, {}

    def _held_event(self, number: int) -> SlotsHeld:
        cpus, gpus = self._num_cpus * self._group, self._num_gpus * self._group
        return SlotsHeld(holder=_holder(number), num_cpus=cpus, num_gpus=gpus)


def _holder(number: int) -> str:
    return f"slot {number + 1}"
