"""Who is in the world of an elastic training run."""

from __future__ import annotations

from dataclasses import dataclass

from raykit.decisions import Decision, End, Form, GiveUp, Start

MAX_LOSSES_WITHOUT_COMMIT = 5
BROKEN_GRACE_S = 1.0  # a dead peer is told of by Ray within this time; after it, nobody died: meet again


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerState:
    """A worker as the host knows it. ``ready`` is at its first step or beyond; ``done`` has left its loop."""

    worker: str
    holds_slot: bool = False
    ready: bool = False
    done: bool = False
    lost: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """What is true: the workers, the world as it was last asked for, and the slots that are held and wanted.

    ``is_formed`` says that the ranks of the world have met. ``broken_for_s`` is the time since a rank said that it cannot reach its peers, None while they all can.
    """

    min_workers: int
    num_slots: int
    num_spares: int
    world: tuple[str, ...] = ()
    is_formed: bool = True
    workers: tuple[WorkerState, ...] = ()
    losses_since_commit: int = 0
    broken_for_s: float | None = None


def decide(now: Membership) -> list[Decision]:
    """Say what to do next; nothing, when all is as it should be.

    Survivors keep their order, so that rank 0 stays what it was as long as it lives. A loss is answered at once with the
    survivors, who have the state already; a spare joins at the commit after. It joins at once where they are too few.
    """
    alive = [each for each in now.workers if not each.lost]
    if now.losses_since_commit > MAX_LOSSES_WITHOUT_COMMIT:
        return [GiveUp(reason=f"{now.losses_since_commit} workers were lost without a commit in between")]
    decisions: list[Decision] = []
    if any(each.done for each in alive):
        return _finish(now, alive)
    num_spares = now.num_spares if now.world else 0  # the first ranks do not share their CPUs with a spare's warming up
    missing = now.num_slots + num_spares - len(alive)
    if missing > 0:
        ranks = max(0, min(missing, now.num_slots - len(alive)))
        decisions.append(Start(num_ranks=ranks, num_spares=missing - ranks))
    world = _next_world(now, alive)
    if now.is_formed and world == now.world:
        leavers = tuple(each.worker for each in alive if each.holds_slot and each.ready and each.worker not in world)
        decisions += [End(workers=leavers)] if leavers else []
    meet_again = now.broken_for_s is not None and now.broken_for_s > BROKEN_GRACE_S
    if (world != now.world or meet_again) and len(world) >= now.min_workers:
        decisions.append(Form(workers=world))
    return decisions


def _next_world(now: Membership, alive: list[WorkerState]) -> tuple[str, ...]:
    ready = [each.worker for each in alive if each.ready]
    survivors = [worker for worker in now.world if worker in ready]
    joiners = [worker for worker in ready if worker not in survivors]
    whole = len(survivors) == len(now.world) and now.is_formed
    if not whole and len(survivors) >= now.min_workers:
        joiners = []
    if not now.world and len(ready) < now.num_slots:
        return ()  # the first world waits for all whose slots are held
    return tuple([*survivors, *joiners][: now.num_slots])


def _finish(now: Membership, alive: list[WorkerState]) -> list[Decision]:
    """Some have left the loop: whoever lost a peer in its last step redoes that step among those still in it."""
    lost = any(each.lost for each in now.workers if each.worker in now.world) or now.broken_for_s is not None
    rest = tuple(each.worker for each in alive if each.ready and not each.done and each.worker in now.world)
    return [Form(workers=rest)] if lost and rest and rest != now.world else []
