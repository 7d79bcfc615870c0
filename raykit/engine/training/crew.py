"""The workers of a training run as its host knows them: started, heard, lost and ended, replica by replica."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raykit.engine.losses import GONE, cause_of
from raykit.engine.main_thread import SETUP
from raykit.engine.run import RunContext, UserCodeError, wake_at
from raykit.engine.setting import NAMESPACE
from raykit.engine.slots import Slots
from raykit.engine.training.vigil import Place, Vigil
from raykit.engine.training.worker import Description, Worker, find_workers, name_of, number_of, replica_of
from raykit.engine.training.world import Address, Generation
from raykit.events import WorkerEnded, WorkerLost
from raykit.policy.failure import Pulse
from raykit.policy.membership import ReplicaState
from raykit.spec import TrainSpec
from raykit.spec.training import LossCause

DESCRIBE_TIMEOUT_S = 5.0
LEAVE_TIMEOUT_S = 10.0


@dataclass(slots=True, kw_only=True)
class Hand:
    """One worker. A reference that was answered is None."""

    worker: str
    handle: Any
    ready: Any
    outcome: Any
    store: Address | None = None
    place: Place | None = None
    done: bool = False
    invited: int = 0
    aside: int = 0
    """The newest world that has it, and the newest for which it has left because that has it not."""


@dataclass(slots=True, kw_only=True)
class Replica:
    """Workers that come and go together, in the order of their ranks. One that went silent may be heard again."""

    name: str
    slot: int | None
    hands: list[Hand] = field(default_factory=list)
    lost: bool = False
    may_return: bool = False

    @property
    def ready(self) -> bool:
        return not self.lost and all(hand.store is not None for hand in self.hands)

    @property
    def done(self) -> bool:
        return all(hand.done for hand in self.hands)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A worker that is gone. ``cause`` is for people, ``kind`` for the budget."""

    worker: str
    cause: str
    kind: LossCause
    stack: str = ""


class Crew:
    """All replicas that a host has started or found, by name. Called from the host's loop alone."""

    def __init__(self, context: RunContext, vigil: Vigil) -> None:
        self._context, self._vigil = context, vigil
        self._spec: TrainSpec = context.spec
        self._num_named = 0
        self._leaving: dict[Any, tuple[Replica, float]] = {}
        self.wake = threading.Event()
        self._holds_gpus = context.cluster.has_real_gpus(self._spec.gpus_per_worker)
        self.replicas: dict[str, Replica] = {}
        self.losses: Counter[str] = Counter()

    @property
    def living(self) -> Iterator[Replica]:
        return (replica for replica in self.replicas.values() if not replica.lost)

    @property
    def hands(self) -> Iterator[Hand]:
        """Workers of the replicas that live."""
        return (hand for replica in self.living for hand in replica.hands)

    @property
    def states(self) -> tuple[ReplicaState, ...]:
        """Give all replicas as the policy sees them."""
        return tuple(
            ReplicaState(
                replica=each.name,
                holds_slot=each.slot is not None,
                ready=each.ready,
                done=each.done,
                lost=each.lost,
                silent=any(self._vigil.is_silent(hand.worker) for hand in each.hands),
                aside=all(hand.aside > hand.invited for hand in each.hands),
            )
            for each in self.replicas.values()
        )

    @property
    def slots_used(self) -> set[int]:
        leaving = [replica for replica, _ in self._leaving.values()]
        return {replica.slot for replica in (*self.living, *leaving) if replica.slot is not None}

    def workers_of(self, world: tuple[str, ...]) -> tuple[str, ...]:
        """Give the workers of these replicas by rank; of a replica that an earlier host lost, only its name is known."""
        return tuple(
            worker
            for name in world
            for worker in ([hand.worker for hand in self.replicas[name].hands] if name in self.replicas else [name])
        )

    def invite(self, workers: tuple[str, ...], generation: int) -> None:
        """Know who is in the world of that number."""
        for worker in workers:
            if found := self.find(worker):
                found[1].invited = generation

    def find(self, worker: str) -> tuple[Replica, Hand] | None:
        """Give a worker that was not let go, with its replica."""
        replica = self.replicas.get(replica_of(worker))
        return next(((replica, hand) for hand in replica.hands if hand.worker == worker), None) if replica else None

    def take_up(self, num_named: int) -> tuple[Generation | None, bool]:
        """Find what an earlier host left; give the newest world that it published, and whether its ranks are all in it.

        Args:
            num_named: names that are taken.
        """
        latest: Generation | None = None
        entered: dict[str, int] = {}
        left = find_workers(self._context.name)
        self._num_named = max([num_named, *(number_of(worker)[0] for worker in left)])
        asked = {worker: handle.describe.remote() for worker, handle in left.items()}
        for worker, handle in left.items():
            try:
                described: Description = ray.get(asked[worker], timeout=DESCRIBE_TIMEOUT_S)
            except GONE:
                continue
            except ray.exceptions.GetTimeoutError:  # stopped, or its node is silent: go on without it
                ray.kill(handle)
                continue
            replica = self.replicas.setdefault(replica_of(worker), Replica(name=replica_of(worker), slot=described.slot))
            hand = self._hand(worker, handle)
            replica.hands.append(hand)
            self._place(hand, described)
            self._vigil.hear(worker, Pulse(phase="idle", phase_s=0.0, progress=(0, 0)), time.monotonic())
            entered[worker] = described.entered
            if described.assigned and (latest is None or described.assigned.number > latest.number):
                latest = described.assigned
        for replica in [each for each in self.replicas.values() if len(each.hands) < self._spec.group]:
            self._kill(self.replicas.pop(replica.name))
        return latest, latest is not None and all(entered.get(worker, 0) == latest.number for worker in latest.workers)

    def start(self, slot: int | None, slots: Slots) -> None:
        """Start a replica in a slot, or a spare, which holds none and stays away from the nodes of the ranks."""
        self._num_named += 1
        name, size = f"w{self._num_named}", self._spec.group
        replica = self.replicas[name] = Replica(name=name, slot=slot)
        away = None if slot is not None else self._node_with_fewest_ranks()
        for place in range(size):
            options: dict[str, Any] = {}
            if slot is not None:
                options = slots.place(slot, place, within=self._holds_gpus)
                if self._holds_gpus:
                    options["num_gpus"] = self._spec.gpus_per_worker
            elif away:
                options = {"scheduling_strategy": NodeAffinitySchedulingStrategy(away, soft=True)}
            worker = name if size == 1 else f"{name}.{place}"
            leader = replica.hands[0].handle if place else None
            options |= {"name": name_of(self._context.name, worker), "namespace": NAMESPACE, "lifetime": "detached"}
            options["runtime_env"] = SETUP
            handle = Worker.options(**options).remote(  # type: ignore[attr-defined]
                self._context.host, self._context.run_folder, self._spec, worker, slot=slot, leader=leader
            )
            replica.hands.append(self._hand(worker, handle))

    def hear(self, timeout_s: float) -> list[Loss]:
        """Take in what workers answered, and give those whose actors died; blocking up to ``timeout_s``, or until a wake.

        Raises:
            UserCodeError: the user's code raised in one.
        """
        self.wake.wait(timeout_s)
        self.wake.clear()
        self._let_go()
        asked = {ref: hand for hand in self.hands for ref in (hand.ready, hand.outcome) if ref is not None}
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=0) if asked else ([], [])
        lost: dict[str, Loss] = {}
        for ref in answered:
            hand = asked[ref]
            try:
                answer = ray.get(ref)
            except GONE as exc:
                cause, kind = cause_of(exc)
                lost[hand.worker] = Loss(worker=hand.worker, cause=cause, kind=kind)
                continue
            if ref == hand.ready:
                self._describe(hand, answer)
            else:
                hand.outcome, hand.done = None, True
                if answer is not None:
                    raise UserCodeError(*answer)
        return list(lost.values())

    def lose(self, loss: Loss, ranks: tuple[str, ...]) -> str | None:
        """Take a worker as lost, and its replica with it; give the replica's name, None when it was lost before.

        Args:
            loss: who, and why.
            ranks: the workers of the world that stands.
        """
        found = self.find(loss.worker)
        if found is None or found[0].lost:
            return None
        replica, _ = found
        replica.lost, replica.may_return = True, loss.kind == "node"
        self.losses[loss.kind] += 1
        for hand in replica.hands:
            self._vigil.forget(hand.worker)
            hand.ready = hand.outcome = None
            rank = ranks.index(hand.worker) if hand.worker in ranks else None
            is_it = hand.worker == loss.worker
            cause = loss.cause if is_it else f"its replica lost {loss.worker}"
            self._context.emit(WorkerLost(worker=hand.worker, rank=rank, cause=cause, category=loss.kind))
            if not is_it:
                ray.kill(hand.handle)
        return replica.name

    def forget_lost(self, world: tuple[str, ...]) -> None:
        """Let go of those who were lost for good and are in the world no more: a run of weeks loses thousands."""
        self.replicas = {name: each for name, each in self.replicas.items() if not each.lost or each.may_return or name in world}

    def end(self, name: str) -> None:
        """Let a replica go that the run has outgrown: it has ``LEAVE_TIMEOUT_S`` for what the user wants done before."""
        replica = self.replicas.pop(name)
        for hand in replica.hands:
            self._vigil.forget(hand.worker)
            self._context.emit(WorkerEnded(worker=hand.worker))
        left = replica.hands[0].handle.leave.remote()
        wake_at(left, self.wake)
        self._leaving[left] = replica, time.monotonic() + LEAVE_TIMEOUT_S
        for hand in replica.hands[1:]:
            hand.handle.leave.remote()

    def stand_by(self, name: str) -> None:
        """Have a replica wait without its slot."""
        replica = self.replicas[name]
        replica.slot = None
        for hand in replica.hands:
            hand.handle.stand_by.remote()

    def end_all(self) -> None:
        """End every worker."""
        for replica in (*self.living, *(replica for replica, _ in self._leaving.values())):
            self._kill(replica)

    def drop_unplaced(self, slots: Slots, world: tuple[str, ...]) -> None:
        """End replicas that wait for a slot which went away with its node."""
        for replica in list(self.living):
            if replica.slot is not None and replica.slot not in slots.held and replica.name not in world:
                self._kill(self.replicas.pop(replica.name))

    def _let_go(self) -> None:
        """End those that have left, or did not in time."""
        for ref, (replica, deadline_s) in list(self._leaving.items()):
            answered, _ = ray.wait([ref], timeout=0)
            if answered or time.monotonic() > deadline_s:
                del self._leaving[ref]
                self._kill(replica)

    def _hand(self, worker: str, handle: Any) -> Hand:
        hand = Hand(worker=worker, handle=handle, ready=handle.ready.remote(), outcome=handle.outcome.remote())
        for ref in (hand.ready, hand.outcome):
            wake_at(ref, self.wake)
        return hand

    def _describe(self, hand: Hand, described: Description) -> None:
        hand.ready, hand.store = None, described.store
        self._place(hand, described)

    def _place(self, hand: Hand, described: Description) -> None:
        hand.place = Place(pid=described.pid, node_id=described.node_id)
        self._vigil.guard({described.node_id})

    def _node_with_fewest_ranks(self) -> str | None:
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        ranks = Counter(hand.place.node_id for hand in self.hands if hand.place)
        return min(nodes, key=lambda node: ranks[node]) if len(nodes) > 1 else None

    @staticmethod
    def _kill(replica: Replica) -> None:
        for hand in replica.hands:
            ray.kill(hand.handle)
