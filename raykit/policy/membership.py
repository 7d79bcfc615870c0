"""Who is in the world of an elastic training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from raykit.decisions import Conclude, Decision, End, Form, GiveUp, LossAnswer, StandBy, Start

MAX_LOSSES_WITHOUT_COMMIT = 5
SILENT_S = 0.75  # three pulses
BROKEN_GRACE_S = SILENT_S  # a dead process is told of by Ray within this time; after it, those who are heard meet again


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaState:
    """A replica as the host knows it. ``ready`` is at its first step or beyond; ``done`` has left its loop.

    ``silent`` was not heard for ``SILENT_S``: it may be dead, or only late. It is not invited until it is heard again.
    ``aside`` has left for the world that was asked for last, which is one without it.
    """

    replica: str
    holds_slot: bool = False
    ready: bool = False
    done: bool = False
    lost: bool = False
    silent: bool = False
    aside: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """What is true: the replicas, the world as it was last asked for, and the slots that are held and wanted.

    ``num_standing_by`` replicas may wait, beside the spares, for slots that others have now.
    ``is_formed`` says that the ranks of the world have met, ``is_awaited`` that those of the one before train on until they
    have, ``is_settling`` that they did a moment ago and have yet to commit a step. ``broken_for_s`` is the time since a rank
    said that it cannot reach its peers, None while they all can.
    ``must_hurry``: the world that was asked for last is to be entered at a commit, but in the world before it somebody is
    gone, and there will be no commit. ``losses`` counts the replicas lost so far by their cause, and ``max_losses`` bounds
    them, the sum under ``""``. ``is_concluding``: the last world was asked for to save and end.
    """

    min_replicas: int
    num_slots: int
    num_spares: int
    num_standing_by: int = 0
    world: tuple[str, ...] = ()
    is_formed: bool = True
    is_awaited: bool = False
    is_settling: bool = False
    is_concluding: bool = False
    replicas: tuple[ReplicaState, ...] = ()
    on_loss: LossAnswer = "shrink"
    losses: Mapping[str, int] = field(default_factory=dict)
    max_losses: Mapping[str, int] = field(default_factory=dict)
    losses_since_commit: int = 0
    broken_for_s: float | None = None
    must_hurry: bool = False


def decide(now: Membership) -> list[Decision]:
    """Say what to do next; nothing, when all is as it should be.

    Survivors keep their order, so that rank 0 stays what it was as long as it lives. A loss is answered at once with the
    survivors, who have the state already; a spare joins at the commit after. It joins at once where they are too few.
    """
    alive = [each for each in now.replicas if not each.lost]
    if now.losses_since_commit > MAX_LOSSES_WITHOUT_COMMIT:
        return [GiveUp(reason=f"{now.losses_since_commit} workers were lost without a commit in between")]
    if now.world and any(each.done for each in alive):  # code without a loop may be over before the first world is formed
        return _finish(now, alive)
    if reason := _spent(now):
        return _conclude(now, alive, reason, failed=True)
    if now.is_concluding or (now.on_loss == "stop" and (_has_lost(now) or now.must_hurry)):
        return _conclude(now, alive, "a worker was lost, and on_loss is stop", failed=False)
    worlds = _worlds(now, alive)
    # Who would start waits for a world that is being made: it could train already, and needs the CPUs for it.
    is_being_made = now.world and not now.is_formed and not _has_lost(now)
    return worlds if worlds or is_being_made or now.is_settling else _staff(now, alive)


def _staff(now: Membership, alive: list[ReplicaState]) -> list[Decision]:
    if len(alive) < now.num_slots:
        return [Start(num_ranks=now.num_slots - len(alive))]
    if not now.world or any(each.holds_slot and not each.ready for each in alive):
        return []  # ranks that start, and those that train, do not share their CPUs with a spare's warming up, too
    missing = now.num_slots + now.num_spares - len(alive)
    return [Start(num_spares=missing)] if missing > 0 else []


def _worlds(now: Membership, alive: list[ReplicaState]) -> list[Decision]:
    decisions: list[Decision] = []
    # A run that waits for a lost place still follows a person who makes it smaller.
    least = max(now.min_replicas, min(len(now.world), now.num_slots)) if now.on_loss == "wait" else now.min_replicas
    world = _next_world(now, alive, least)
    if world == now.world:
        decisions += _part(now, alive)
    if (world != now.world or _must_meet_again(now) or now.must_hurry) and len(world) >= least:
        decisions.append(Form(replicas=world))
    return decisions


def _part(now: Membership, alive: list[ReplicaState]) -> list[Decision]:
    """End those outside of the world who are too many, first those who hold a slot; the others wait without one.

    Who stands aside gives its slot at once. Who is ended is not, before the others have met without it.
    """
    outside = [each for each in alive if each.replica not in now.world and each.ready and not each.silent]
    outside.sort(key=lambda each: not each.holds_slot)
    num_too_many = max(0, len(alive) - now.num_slots - now.num_spares - now.num_standing_by)
    leavers = tuple(each.replica for each in outside[:num_too_many] if now.is_formed)
    waiting = tuple(each.replica for each in outside[num_too_many:] if each.holds_slot and (now.is_formed or each.aside))
    return [*([End(replicas=leavers)] if leavers else []), *([StandBy(replicas=waiting)] if waiting else [])]


def _next_world(now: Membership, alive: list[ReplicaState], least: int) -> tuple[str, ...]:
    ready = {each.replica: each for each in alive if each.ready}
    meeting = _must_meet_again(now) or now.must_hurry
    survivors = [replica for replica in now.world if replica in ready and not (meeting and ready[replica].silent)]
    joiners = [replica for replica, state in ready.items() if replica not in survivors and not state.silent]
    whole = len(survivors) == len(now.world) and (now.is_formed or now.is_awaited)
    if not whole and len(survivors) >= least:
        joiners = []
    if not now.world and len(ready) < now.num_slots:
        return ()  # the first world waits for all whose slots are held
    return tuple([*survivors, *joiners][: now.num_slots])


def _has_lost(now: Membership) -> bool:
    return any(each.lost for each in now.replicas if each.replica in now.world)


def _must_meet_again(now: Membership) -> bool:
    """Say whether the ranks have lost touch with each other though none of them died."""
    return now.broken_for_s is not None and now.broken_for_s > BROKEN_GRACE_S


def _spent(now: Membership) -> str:
    """Say which budget of losses is spent; nothing, when none is."""
    for cause, most in now.max_losses.items():
        count = now.losses.get(cause, 0) if cause else sum(now.losses.values())
        if count > most:
            return f"{count} workers were lost{f' ({cause})' if cause else ''}, and --max-losses is {most}"
    return ""


def _conclude(now: Membership, alive: list[ReplicaState], reason: str, *, failed: bool) -> list[Decision]:
    rest = tuple(each.replica for each in alive if each.ready and each.replica in now.world)
    if not rest:
        return [GiveUp(reason=reason)]
    asked = now.is_concluding and rest == now.world and not _must_meet_again(now)
    return [] if asked else [Conclude(replicas=rest, reason=reason, failed=failed)]


def _finish(now: Membership, alive: list[ReplicaState]) -> list[Decision]:
    """Some have left the loop: whoever lost a peer in its last step redoes that step among those still in it."""
    rest = tuple(each.replica for each in alive if each.ready and not each.done and each.replica in now.world)
    hurt = _has_lost(now) or now.broken_for_s is not None or now.must_hurry
    return [Form(replicas=rest)] if hurt and rest and (rest != now.world or now.must_hurry) else []
