"""Which replicas of a service take which slots, which get warm, and which give way to those of a new version.

A slot whose replica leaves is free when its requests are answered; so is a replica that may take another slot. Where slots
are real GPUs a replica is bound to its slot, and ends with it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """A replica: in a slot or without one, built or being built, and whether it answers the last requests that it has."""

    name: str
    version: int = 1
    slot: int | None = None
    is_built: bool = True
    is_leaving: bool = False

    @property
    def is_at_work(self) -> bool:
        return self.is_built and self.slot is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a service needs: ``wanted`` replicas at work and ``num_warm`` beside them, ``most`` in all.

    All are to be of the ``current`` version. Of one that is ``asked`` for, a first replica is built to see whether it can be.
    """

    wanted: int
    most: int
    num_warm: int
    current: int = 1
    asked: int | None = None
    bound: bool = False
    """A replica is bound to its slot."""


@dataclass(slots=True, kw_only=True)
class Staffing:
    """What to do: names, names with their slots, and slots (None: without one) with the version that is to be built."""

    leave: list[str]
    seat: list[tuple[str, int]]
    end: list[str]
    start: list[tuple[int | None, int]]


def staffing(replicas: Sequence[Replica], slots: Collection[int], demand: Demand) -> Staffing:
    """Fill the slots that are there, and have one replica after the other give way to a new version.

    No old replica leaves before its successor is built, but where that needs its slot; then one leaves at a time.
    """
    plan = Staffing(leave=[], seat=[], end=[], start=[])
    staying = sorted(
        (each for each in replicas if each.version == demand.current and not each.is_leaving),
        key=lambda each: (not each.is_at_work, not each.is_built, each.slot is None),
    )
    old = [each for each in replicas if each.version not in {demand.current, demand.asked} and not each.is_leaving]
    plan.end += [each.name for each in old if not each.is_at_work]
    if demand.bound:
        plan.end += [each.name for each in staying if each.slot is None]
    seated = [*(each for each in staying if each.slot is not None), *(each for each in old if each.is_at_work)]
    waiting = [each for each in staying if each.slot is None and each.name not in plan.end]
    for each in seated[demand.wanted :]:
        (plan.end if demand.bound and not each.is_built else plan.leave).append(each.name)
    seated = seated[: demand.wanted]

    used = {each.slot for each in replicas}
    free = [slot for slot in slots if slot not in used][: demand.wanted - len(seated)]
    plan.seat += [(each.name, slot) for each, slot in zip(waiting, free, strict=False)]
    waiting, free = waiting[len(plan.seat) :], free[len(plan.seat) :]

    is_changing = any(not each.is_built or each.is_leaving for each in replicas)
    if demand.asked is not None and all(each.version != demand.asked for each in replicas):
        if not demand.bound:
            plan.start.append((None, demand.asked))
        elif free:
            plan.start.append((free.pop(0), demand.asked))
        elif seated and not is_changing:
            plan.leave.append(seated[-1].name)
    plan.start += [(slot, demand.current) for slot in free]
    is_changing |= bool(plan.start or plan.leave)

    giving_way = [each for each in seated if each.version != demand.current]
    num_ready = sum(each.is_built for each in waiting) - sum(each.is_leaving for each in replicas)
    num_all = min(demand.most, demand.wanted + demand.num_warm)
    num_waiting = num_all - len(seated) - len(plan.seat) + bool(giving_way)
    plan.end += [each.name for each in waiting[max(0, num_waiting) :]]
    if giving_way and num_ready > 0:
        plan.leave += [each.name for each in giving_way[:num_ready]]
    elif giving_way and not is_changing and demand.bound:
        plan.leave.append(giving_way[0].name)
    # One at a time: who gets built takes CPUs from those at work.
    elif not is_changing and (giving_way or (demand.num_warm and len(replicas) < num_all)):
        plan.start.append((None, demand.current))
    return plan
