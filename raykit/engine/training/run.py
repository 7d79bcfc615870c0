"""A training run as its host drives it: observe, decide, act."""

from __future__ import annotations

import queue
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import ray

from raykit.codec import encode
from raykit.commands import Command, Drill, Hurry, Lend, Resize, Stop, Take
from raykit.decisions import Conclude, Decision, End, Form, GiveUp, LossAnswer, StandBy, Start
from raykit.engine.losses import GONE
from raykit.engine.run import RunContext, StoppedError, UserCodeError
from raykit.engine.slots import Slots
from raykit.engine.training.answer import Answer
from raykit.engine.training.checkpoint_folder import check_readable, claim
from raykit.engine.training.crew import Crew, Loss, Replica
from raykit.engine.training.datasets import Datasets
from raykit.engine.training.drills import Drills
from raykit.engine.training.recovery import Recovery
from raykit.engine.training.size import Size
from raykit.engine.training.vigil import Vigil
from raykit.engine.training.worker import number_of
from raykit.engine.training.world import Generation
from raykit.engine.training.worlds import Worlds
from raykit.errors import RunError
from raykit.events import (
    Decided,
    Event,
    LinesPrinted,
    Resized,
    RunStarted,
    RunWaited,
    StepCommitted,
    WorkerAside,
    WorkerLost,
    WorldFormed,
)
from raykit.policy.failure import Pulse
from raykit.policy.membership import SILENT_S, Membership, ReplicaState, decide
from raykit.spec import TrainSpec

TICK_S = 0.05
SLOT_LOOK_S = 0.2
SAVE_TIMEOUT_S = 120.0
FULL_DISK_S, FULL_DISK_LOOK_S = 600.0, 2.0  # so long a run that ends waits for room to save in
UNSEEN = "it died while the run had no host"
_NOBODY = ReplicaState(replica="", lost=True)


class TrainingRun:
    """Keeps the world of a training run whole, from the first slot to the last output."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._spec: TrainSpec = context.spec
        self._size = Size(context)
        own_node_id = ray.get_runtime_context().get_node_id()
        self._vigil = Vigil(own_node_id=own_node_id, hang_after_s=self._spec.hang_after_s)
        self._crew = Crew(context, self._vigil)
        self._drills = Drills(context, self._crew, self._vigil, own_node_id)
        self._datasets = Datasets(context)
        self._worlds = Worlds()
        self._concluding: Conclude | None = None
        self._step = 0
        self._losses_since_commit = 0
        self._recovery: Recovery | None = None
        self._answer: LossAnswer = "shrink"
        self._stop_sent = False
        self._reported: queue.SimpleQueue[tuple[float, str, Event | Pulse]] = queue.SimpleQueue()
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()

    def execute(self) -> None:
        self._claim_checkpoints()
        slots = Slots(
            self._context,
            num_cpus=self._spec.cpus_per_worker,
            num_gpus=self._spec.gpus_per_worker,
            group=self._spec.group,
            already_held=self._take_up() if self._context.attempt > 1 else frozenset(),
        )
        self._on_loss = Answer(self._context)
        try:
            slots.take_up()
            slots.want(self._size.most)
            self._wait_for_slots(slots)
            while not self._is_over():
                self._look(slots)
                for decision in decide(self._membership(slots)):
                    self._context.emit(_as_event(decision))
                    self._act(decision, slots)
            self._save()
        except UserCodeError:
            self._save_of_failed()
            raise
        finally:
            self._drills.end()
            self._crew.end_all()
            slots.release()
        if self._concluding is not None and self._concluding.failed:
            raise UserCodeError("training", f"The run was ended: {self._concluding.reason}.", "")
        if self._concluding is not None:
            raise StoppedError(self._concluding.reason)
        if self._context.stop_asked.is_set():
            raise StoppedError

    def _claim_checkpoints(self) -> None:
        """Refuse a folder with another run's checkpoints, before anything is started."""
        if self._spec.from_checkpoint:
            check_readable(self._spec.from_checkpoint)
        if self._spec.checkpoint_to:
            key = (self._context.folder / "key").read_text()
            claim(self._spec.checkpoint_to, run=self._context.name, key=key)

    def command(self, command: Command) -> None:
        if isinstance(command, Stop):
            self._context.stop_asked.set()
        if isinstance(command, Drill) and command.action == "kill-node" and not self._drills.victims(command, self._worlds.asked):
            raise RunError(
                "No rank is on another node than the run's host: to lose that node would be to lose the cluster.",
                "Try it on a cluster of several nodes: %ray up NAME --nodes 2",
            )
        if isinstance(command, Resize):
            self._context.emit(Resized(min_workers=command.workers[0], max_workers=command.workers[1]))
        self._commands.put(command)
        self._crew.wake.set()

    def report(self, source: str, events: Sequence[Event], pulse: Pulse | None) -> list[Event]:
        """Hand events to the loop; of what is printed only the first rank's lines are shown, the files have all."""
        now_s = time.monotonic()
        for each in (*events, pulse):
            if each is not None:
                self._reported.put((now_s, source, each))
        if events:
            self._crew.wake.set()
        first = (self._crew.workers_of(self._worlds.asked) or ("w1", "w1.0"))[0]
        folded = (_folded(event) if isinstance(event, LinesPrinted) and source != first else event for event in events)
        return [event for event in folded if event is not None]

    def stored_dataset(self, number: int, make: bytes) -> str:
        """Store the rows of the run's Ray Dataset of that number, once, and give their path; blocking."""
        return self._datasets.stored(number, make)

    def _take_up(self) -> frozenset[str]:
        """Find what an earlier host left: its workers, their world, and the slots that it wrote down as held."""
        view = self._context.view()
        latest, is_formed = self._crew.take_up(max((number_of(rank.worker)[0] for rank in view.ranks), default=0))
        for rank in view.ranks:
            if not rank.lost and self._crew.find(rank.worker) is None:
                self._context.emit(WorkerLost(worker=rank.worker, rank=rank.rank, cause=UNSEEN))
        self._step = view.step
        self._size.take_up(view)
        if latest is not None:
            ranks = sorted((rank.rank, rank.worker) for rank in view.ranks if rank.rank is not None and not rank.lost)
            self._worlds.take_up(latest, is_formed=is_formed, stood=tuple(worker for _, worker in ranks))
            self._tell(latest)  # the earlier host may have died before it told all
            gone = [worker for worker in latest.workers if self._crew.find(worker) is None]
            if gone:
                self._begin_recovery(gone, Loss(worker=gone[0], cause=UNSEEN, kind="died"))
                self._losses_since_commit = len(gone)
        return frozenset(slot.holder for slot in view.held)

    def _wait_for_slots(self, slots: Slots) -> None:
        slots.look()
        told = ""
        while len(slots.held) < self._size.least:
            reason = f"{self._size.least} slots are asked, {len(slots.held)} are free"
            if reason != told:
                told = reason
                self._context.emit(RunWaited(reason=reason))
            if self._context.stop_asked.wait(slots.pause_s(SLOT_LOOK_S)):
                raise StoppedError
            self._obey(slots)
            slots.give_back(used=frozenset(), hand_on=self._size.hand_on)
            slots.look()
        self._slots_looked_s = time.monotonic()
        self._size.has_started = True
        self._context.emit(RunStarted())

    def _is_over(self) -> bool:
        if self._context.stop_asked.is_set() and not self._worlds.asked:
            return True
        # Those who were invited since, and wait for the others, are not waited for.
        standing = self._worlds.standing_replicas or set(self._worlds.asked)
        living = [replica for replica in self._crew.living if replica.name in standing]
        return bool(living) and all(replica.done for replica in living)

    def _membership(self, slots: Slots) -> Membership:
        worlds = self._worlds
        lost_by_earlier_host = [name for name in worlds.asked if name not in self._crew.replicas]
        gone = tuple(replace(_NOBODY, replica=name) for name in lost_by_earlier_host)
        num_slots = min(len(slots.held), self._size.most)
        return Membership(
            min_replicas=self._size.least,
            num_slots=num_slots,
            num_spares=self._num_spares,
            num_standing_by=0 if self._holds_gpus else max(0, self._size.asked - num_slots),
            world=worlds.asked,
            is_formed=worlds.is_formed,
            is_awaited=worlds.is_awaited,
            is_settling=worlds.is_settling,
            is_concluding=self._concluding is not None,
            replicas=(*gone, *self._crew.states),
            on_loss=self._answer,
            losses={kind: count for kind, count in self._crew.losses.items() if kind != "reclaimed"},
            max_losses=dict(self._spec.max_losses),
            losses_since_commit=self._losses_since_commit,
            broken_for_s=worlds.broken_for_s,
            must_hurry=worlds.must_hurry,
        )

    @property
    def _num_spares(self) -> int:
        if self._spec.num_spares is not None:
            return self._spec.num_spares
        # A spare holds no slot, so where slots are GPUs it has no device to warm up on.
        return 0 if self._holds_gpus or self._context.cluster.profile == "small" else 1

    @property
    def _holds_gpus(self) -> bool:
        return self._context.cluster.has_real_gpus(self._spec.gpus_per_worker)

    def _look(self, slots: Slots) -> None:
        """Take in what has happened since the last look; blocking up to a tick."""
        died = self._crew.hear(slots.pause_s(TICK_S))
        self._end_hung()  # before the deaths are taken in: who hangs is named so before it is ended
        self._end_late()
        for loss in died:
            self._lose(loss)
            if loss.kind == "node":  # nobody is to be started in a slot that went with it
                slots.doubt()
                self._slots_looked_s = 0.0
        while not self._reported.empty():
            at_s, source, reported = self._reported.get()
            if isinstance(reported, Pulse):
                self._hear(source, reported, at_s)
            else:
                self._take_in(at_s, reported)
        self._obey(slots)
        if slots.are_on_the_way or time.monotonic() - self._slots_looked_s > SLOT_LOOK_S:
            self._slots_looked_s = time.monotonic()
            slots.look()
            self._crew.drop_unplaced(slots, self._worlds.asked)
        slots.give_back(used=self._crew.slots_used, hand_on=self._size.hand_on)

    def _obey(self, slots: Slots) -> None:
        """Carry out what was asked, as far as its time has come."""
        while not self._commands.empty():
            command = self._commands.get()
            if isinstance(command, Drill):
                self._drills.add(command)
            if isinstance(command, Resize | Lend):
                self._resize(command, slots)
            if isinstance(command, Hurry):
                slots.hurry()
            if isinstance(command, Take):
                slots.take(command.slot, command.by_unix_s)
        if self._context.stop_asked.is_set() and not self._stop_sent:
            self._stop_sent = True
            for hand in self._crew.hands:
                hand.handle.stop.remote()
        if self._recovery is None:  # no earlier loss is being mended
            self._drills.strike(self._worlds.asked)

    def _resize(self, command: Resize | Lend, slots: Slots) -> None:
        """Have more or fewer from now on: who is too many leaves at a commit, and its slot with it."""
        if isinstance(command, Resize):
            self._size.resize(command.workers)
        else:
            self._size.lend(command)
        slots.want(self._size.most)
        self._slots_looked_s = 0.0

    def _hear(self, worker: str, pulse: Pulse, at_s: float) -> None:
        found = self._crew.find(worker)
        if found is None:
            return
        replica, hand = found
        if replica.lost:
            hand.handle.die.remote()  # back from a silence: the run went on without it
        else:
            self._vigil.hear(worker, pulse, at_s)

    def _end_hung(self) -> None:
        """Take those who hang as lost."""
        for hung in self._vigil.look({hand.worker: hand.place for hand in self._crew.hands if hand.place}):
            self._lose(Loss(worker=hung.worker, cause=hung.cause, kind=hung.kind, stack=hung.stack))

    def _end_late(self) -> None:
        """Take slots by force from who was to leave and has not come to a commit in time."""
        if not self._size.is_late:
            return
        leaving = self._worlds.standing_replicas - set(self._worlds.asked)
        for replica in self._crew.living:
            if replica.slot is not None and replica.name in leaving:
                cause = f"it did not come to a commit within {self._spec.lend_within_s:g} s after its slot was wanted"
                self._lose(Loss(worker=replica.hands[0].worker, cause=cause, kind="reclaimed"))
                for hand in replica.hands:
                    ray.kill(hand.handle)

    def _lose(self, loss: Loss) -> None:
        ranks = self._ranks
        name = self._crew.lose(loss, ranks)
        if name is None:  # it was lost or let go before
            return
        self._losses_since_commit += 1
        stands = loss.worker in ranks
        if stands:
            self._worlds.lose_one()
        if stands or name in self._worlds.asked:
            rank = ranks.index(loss.worker) if stands else None
            if loss.kind != "reclaimed":  # that was raykit's own doing: the user's policy is not asked
                self._answer = self._on_loss.to(loss.worker, rank, loss.cause)
            self._begin_recovery([hand.worker for hand in self._crew.replicas[name].hands], loss)

    def _begin_recovery(self, lost: list[str], loss: Loss) -> None:
        if self._recovery is None:
            self._recovery = Recovery(known_at_s=time.monotonic(), world_before=self._ranks, step_before=self._step)
            self._recovery.broken = self._worlds.is_broken
        self._recovery.formed = None
        self._recovery.lost.extend(lost)
        self._recovery.cause, self._recovery.stack = loss.cause, loss.stack
        for worker in lost:
            if struck := self._drills.struck(worker):
                self._recovery.drill, self._recovery.struck_at_s = struck.action, struck.at_s

    @property
    def _ranks(self) -> tuple[str, ...]:
        """The workers of the world that stands; before the first, of the one that was asked for."""
        return self._worlds.standing or self._crew.workers_of(self._worlds.asked)

    def _take_in(self, at_s: float, event: Event) -> None:
        self._worlds.hear(event, at_s)
        if isinstance(event, WorkerAside) and (found := self._crew.find(event.worker)):
            found[1].aside = event.generation
        if self._recovery is not None:
            card = self._recovery.observe(event, at_s)
            if self._concluding and isinstance(event, WorldFormed) and event.generation == self._worlds.number:
                card = self._recovery.concluded(event)
            if card:
                self._recovery, self._answer = None, "shrink"
                self._context.emit(*card)
        if isinstance(event, StepCommitted):
            self._drills.begin(at_s)
            self._step, self._losses_since_commit = event.step, 0
            self._vigil.step_took(event.step_s)

    def _act(self, decision: Decision, slots: Slots) -> None:
        if isinstance(decision, GiveUp):
            raise UserCodeError("training", f"The run was given up: {decision.reason}.", "")
        if isinstance(decision, Start):
            self._start(decision, slots)
        if isinstance(decision, Form):
            self._form(decision.replicas, slots)
        if isinstance(decision, Conclude):
            self._concluding = decision
            self._form(decision.replicas, slots, final=True)
        if isinstance(decision, End):
            for name in decision.replicas:
                self._crew.end(name)
        if isinstance(decision, StandBy):
            for name in decision.replicas:
                self._crew.stand_by(name)
            slots.give_back(used=self._crew.slots_used, hand_on=self._size.hand_on)
            if self._size.hand_on is None:
                self._size.hurry_borrower()

    def _start(self, decision: Start, slots: Slots) -> None:
        free = [number for number in slots.held if number not in self._crew.slots_used]
        for number in free[: decision.num_ranks]:
            self._crew.start(number, slots)
        for _ in range(decision.num_spares):
            self._crew.start(None, slots)

    def _form(self, world: tuple[str, ...], slots: Slots, *, final: bool = False) -> None:
        """Publish the next world to all workers; who lost a peer enters at once, the others after a commit."""
        replicas, before = self._crew.replicas, self._worlds.asked
        somebody_gone = any(name not in replicas or replicas[name].lost for name in before)
        urgent = final or self._worlds.must_hurry or self._worlds.is_broken or somebody_gone
        if urgent and (unheard := [name for name in before if name in replicas and self._is_left_out(name, world)]):
            silent = list(self._crew.workers_of(tuple(unheard)))
            self._begin_recovery(silent, Loss(worker=silent[0], cause=f"it was not heard for {SILENT_S} s", kind="node"))
        number = self._worlds.ask(world, urgent=urgent)
        store = replicas[world[0]].hands[0].store
        assert store is not None, "only replicas that are ready form a world"
        taken = {replicas[name].slot for name in world}
        free = [number for number in slots.held if number not in taken]
        for name in world:
            if replicas[name].slot is None and free:
                replicas[name].slot = free.pop(0)  # a spare takes the place of who was lost
        self._crew.forget_lost(world)
        workers = self._crew.workers_of(world)
        self._tell(
            Generation(
                number=number,
                workers=workers,
                store=store,
                urgent=urgent,
                group_size=self._spec.group,
                final=final,
            )
        )

    def _is_left_out(self, name: str, world: tuple[str, ...]) -> bool:
        """Say whether a replica that lives is not invited any more because it is silent."""
        replica = self._crew.replicas[name]
        return name not in world and not replica.lost and any(self._vigil.is_silent(hand.worker) for hand in replica.hands)

    def _tell(self, generation: Generation) -> None:
        self._crew.invite(generation.workers, generation.number)
        leavers_first = sorted(self._crew.hands, key=lambda hand: hand.worker in generation.workers)
        for hand in leavers_first:  # others wait for their slots
            hand.handle.assign.remote(generation)

    def _save(self) -> None:
        """Have the first replica that lives keep the state, and its first rank the names that come back."""
        for name in self._worlds.asked:
            replica = self._crew.replicas.get(name)
            if replica is None or replica.lost:
                continue
            try:
                self._save_state(replica)
                self._save_outputs(replica.hands[0].handle)
            except GONE:
                continue
            except ray.exceptions.RayTaskError as exc:
                if isinstance(exc.cause, UserCodeError):
                    raise exc.cause from None
                raise
            return
        if self._worlds.asked and self._spec.outputs:
            raise UserCodeError("training", "All ranks died before they could save what -o names.", "")

    def _save_of_failed(self) -> None:
        """Keep the committed steps of a run whose user code has failed, as far as a replica still has them."""
        for name in self._worlds.asked:
            replica = self._crew.replicas.get(name)
            if replica is None or replica.lost:
                continue
            with suppress(*GONE, ray.exceptions.RayTaskError, ray.exceptions.GetTimeoutError):
                self._save_state(replica)
                return

    def _save_state(self, replica: Replica) -> None:
        """Have a replica write its state; while the disk is full it is in memory, and soon nowhere else."""
        deadline_s = time.monotonic() + FULL_DISK_S
        while not all(ray.get([hand.handle.save_state.remote() for hand in replica.hands], timeout=SAVE_TIMEOUT_S)):
            if time.monotonic() > deadline_s:
                return
            time.sleep(FULL_DISK_LOOK_S)

    def _save_outputs(self, first: Any) -> None:
        """Keep the names that come back; of a run that was ended early those that were set."""
        names = self._spec.outputs
        if self._context.stop_asked.is_set() or self._concluding is not None:
            there = ray.get(first.names_set.remote(), timeout=SAVE_TIMEOUT_S)
            names = tuple(name for name in names if name in there)
        if names:
            self._context.emit(*ray.get(first.save_outputs.remote(names), timeout=SAVE_TIMEOUT_S))


def _as_event(decision: Decision) -> Decided:
    about = getattr(decision, "replicas", ()) or tuple(
        f"{name} {value}" for name, value in encode(decision).items() if name != "kind"
    )
    return Decided(decision=type(decision).__name__, about=tuple(about), reason=getattr(decision, "reason", ""))


def _folded(event: LinesPrinted) -> LinesPrinted | None:
    num_dropped = event.num_dropped + len(event.lines)
    return replace(event, lines=(), open_lines=(), num_dropped=num_dropped) if num_dropped else None
