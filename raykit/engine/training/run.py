"""A training run as its host drives it: observe, decide, act."""

from __future__ import annotations

import math
import queue
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray

from raykit.commands import Command, Drill, Resize, Stop
from raykit.decisions import Decision, End, Form, GiveUp, Start
from raykit.engine.run import RunContext, StoppedError, UserCodeError
from raykit.engine.setting import NAMESPACE
from raykit.engine.training.recovery import Recovery
from raykit.engine.training.slots import Slots
from raykit.engine.training.vigil import Place, Vigil
from raykit.engine.training.worker import Description, Worker, find_workers, name_of, number_of
from raykit.engine.training.world import Generation
from raykit.events import (
    DrillEnded,
    DrillStarted,
    Event,
    LinesPrinted,
    Resized,
    RunAccepted,
    RunStarted,
    RunWaited,
    StepCommitted,
    WorkerEnded,
    WorkerLost,
    WorldBroken,
    WorldFormed,
)
from raykit.policy.failure import Pulse
from raykit.policy.membership import Membership, WorkerState, decide
from raykit.spec import TrainSpec
from raykit.store.log import Log
from raykit.views import RunView, fold_all

TICK_S = 0.05
SLOT_LOOK_S = 0.2
SAVE_TIMEOUT_S = 120.0
DESCRIBE_TIMEOUT_S = 5.0
GONE = "it died while the run had no host"


@dataclass(slots=True, kw_only=True)
class _Known:
    """What the host knows of a worker. A reference that was answered is None."""

    handle: Any
    slot: int | None
    ready: Any
    outcome: Any
    store_port: int = 0
    place: Place | None = None
    state: WorkerState


class TrainingRun:
    """Keeps the world of a training run whole, from the first slot to the last output."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._spec: TrainSpec = context.spec
        self._workers: dict[str, _Known] = {}
        self._num_named = 0
        self._min_workers, self._max_workers = self._spec.workers
        self._world: tuple[str, ...] = ()
        self._generation = 0
        self._is_formed = False
        self._step = 0
        self._working_since_s: float | None = None
        self._losses_since_commit = 0
        self._broken_at_s: float | None = None
        self._recovery: Recovery | None = None
        self._drills: list[tuple[float, Drill]] = []
        self._struck: dict[str, tuple[str, float]] = {}
        self._vigil = Vigil(own_node_id=ray.get_runtime_context().get_node_id(), hang_after_s=self._spec.hang_after_s)
        self._stop_sent = False
        self._reported: queue.SimpleQueue[tuple[float, str, Event | Pulse]] = queue.SimpleQueue()
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()

    def execute(self) -> None:
        slots = Slots(self._context, already_held=self._take_up() if self._context.attempt > 1 else frozenset())
        try:
            slots.ask(self._max_workers)
            self._wait_for_slots(slots)
            while not self._is_over():
                self._look(slots)
                for decision in decide(self._membership(slots)):
                    self._act(decision, slots)
            self._save_outputs()
        finally:
            self._end_workers()
            slots.release()
        if self._context.stop_asked.is_set():
            raise StoppedError

    def command(self, command: Command) -> None:
        if isinstance(command, Stop):
            self._context.stop_asked.set()
        self._commands.put(command)

    def report(self, source: str, events: Sequence[Event], pulse: Pulse | None) -> list[Event]:
        """Hand events to the loop; of what is printed only the first rank's lines are shown, the files have all."""
        now_s = time.monotonic()
        for each in (*events, pulse):
            if each is not None:
                self._reported.put((now_s, source, each))
        first = self._world[0] if self._world else "w1"
        return [_folded(event) if isinstance(event, LinesPrinted) and source != first else event for event in events]

    def _take_up(self) -> frozenset[str]:
        """Find what an earlier host left: its workers, their world, and the slots that it wrote down as held."""
        view = _view_of(self._context)
        latest: Generation | None = None
        left = find_workers(self._context.name)
        self._num_named = max([number_of(rank.worker) for rank in view.ranks] + [number_of(worker) for worker in left], default=0)
        asked = {worker: handle.describe.remote() for worker, handle in left.items()}
        for worker, handle in left.items():
            try:
                described: Description = ray.get(asked[worker], timeout=DESCRIBE_TIMEOUT_S)
            except ray.exceptions.RayActorError:
                continue
            except ray.exceptions.GetTimeoutError:  # stopped, or its node is silent: go on without it
                ray.kill(handle)
                continue
            self._know(worker, handle, described.slot)
            if described.assigned and (latest is None or described.assigned.number > latest.number):
                latest = described.assigned
        for rank in view.ranks:
            if not rank.lost and rank.worker not in self._workers:
                self._context.emit(WorkerLost(worker=rank.worker, rank=rank.rank, cause=GONE))
        self._step = view.step
        self._min_workers, self._max_workers = view.resized_to or self._spec.workers
        if latest is not None:
            self._world, self._generation, self._is_formed = latest.workers, latest.number, True
            for known in self._workers.values():
                known.handle.assign.remote(latest)  # the earlier host may have died before it told all
            gone = [worker for worker in latest.workers if worker not in self._workers]
            if gone:
                self._begin_recovery(gone, GONE)
                self._losses_since_commit = len(gone)
        return frozenset(slot.holder for slot in view.slots if slot.released_at_unix_s is None)

    def _wait_for_slots(self, slots: Slots) -> None:
        slots.look()
        told = False
        while len(slots.held) < self._min_workers:
            if not told:
                told = True
                self._context.emit(RunWaited(reason=f"{self._min_workers} slots are asked, {len(slots.held)} are free"))
            if self._context.stop_asked.wait(SLOT_LOOK_S):
                raise StoppedError
            slots.look()
        self._slots_looked_s = time.monotonic()
        self._context.emit(RunStarted())

    def _is_over(self) -> bool:
        living = [known.state for known in self._workers.values() if not known.state.lost]
        if self._context.stop_asked.is_set() and not self._world:
            return True
        world = [state for state in living if state.worker in self._world]
        return bool(world) and all(state.done for state in world)

    def _membership(self, slots: Slots) -> Membership:
        return Membership(
            min_workers=self._min_workers,
            num_slots=min(len(slots.held), self._max_workers),
            num_spares=self._num_spares,
            world=self._world,
            is_formed=self._is_formed,
            workers=tuple(replace(known.state, holds_slot=known.slot is not None) for known in self._workers.values()),
            losses_since_commit=self._losses_since_commit,
            broken_for_s=None if self._broken_at_s is None else time.monotonic() - self._broken_at_s,
        )

    @property
    def _num_spares(self) -> int:
        if self._spec.num_spares is not None:
            return self._spec.num_spares
        # A spare holds no slot, so where slots are GPUs it has no device to warm up on.
        holds_gpu = self._spec.gpus_per_worker > 0 and not self._context.cluster.simulated_gpus
        return 0 if holds_gpu or self._context.cluster.profile == "small" else 1

    def _look(self, slots: Slots) -> None:
        """Take in what has happened since the last look; blocking up to a tick."""
        self._hear_workers()
        while not self._reported.empty():
            at_s, source, reported = self._reported.get()
            if isinstance(reported, Pulse):
                self._hear(source, reported, at_s)
            else:
                self._take_in(at_s, reported)
        self._end_hung()
        while not self._commands.empty():
            command = self._commands.get()
            if isinstance(command, Resize):
                self._resize(command.workers, slots)
            if isinstance(command, Drill):
                self._drills.append((max(time.monotonic(), self._working_since_s or math.inf) + command.after_s, command))
        if self._context.stop_asked.is_set() and not self._stop_sent:
            self._stop_sent = True
            for known in self._living():
                known.handle.stop.remote()
        self._strike()
        if time.monotonic() - self._slots_looked_s > SLOT_LOOK_S and len(slots.held) < self._max_workers:
            self._slots_looked_s = time.monotonic()
            slots.look()

    def _resize(self, workers: tuple[int, int], slots: Slots) -> None:
        """Ask for the slots of another size; those that are too many go back when their workers have left."""
        self._min_workers, self._max_workers = workers
        self._context.emit(Resized(min_workers=workers[0], max_workers=workers[1]))
        slots.ask(self._max_workers)
        slots.give_back(self._max_workers, used={known.slot for known in self._living() if known.slot is not None})

    def _hear_workers(self) -> None:
        asked = {ref: worker for worker, known in self._workers.items() for ref in (known.ready, known.outcome) if ref is not None}
        if not asked:
            time.sleep(TICK_S)
            return
        first, _ = ray.wait(list(asked), timeout=TICK_S)
        if not first:
            return
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=0)
        for ref in answered:
            known = self._workers[asked[ref]]
            try:
                answer = ray.get(ref)
            except ray.exceptions.RayActorError as exc:
                if not known.state.lost:
                    self._lose(known, _cause(exc))
                continue
            if ref == known.ready:
                described: Description = answer
                self._describe(known, described)
                known.state = replace(known.state, ready=True)
            else:
                known.outcome, known.state = None, replace(known.state, done=True)
                if answer is not None:
                    raise UserCodeError(*answer)

    def _describe(self, known: _Known, described: Description) -> None:
        known.ready, known.store_port = None, described.store_port
        known.place = Place(pid=described.pid, node_id=described.node_id)
        self._vigil.guard({described.node_id})

    def _hear(self, worker: str, pulse: Pulse, at_s: float) -> None:
        known = self._workers.get(worker)
        if known is None:
            return
        if known.state.lost:
            known.handle.die.remote()  # back from a silence: the run went on without it
        else:
            self._vigil.hear(worker, pulse, at_s)

    def _end_hung(self) -> None:
        """Take those of the world who hang as lost."""
        members = {worker: self._workers[worker] for worker in self._world if worker in self._workers}
        places = {worker: known.place for worker, known in members.items() if known.place and not known.state.lost}
        for hung in self._vigil.look(places):
            known = self._workers.get(hung.worker)  # the look took a while: it may be lost or let go by now
            if known is not None and not known.state.lost:
                self._lose(known, hung.cause, stack=hung.stack)

    def _lose(self, known: _Known, cause: str, *, stack: str = "") -> None:
        worker = known.state.worker
        self._vigil.forget(worker)
        known.state = replace(known.state, lost=True, ready=False)
        known.ready = known.outcome = None
        rank = self._world.index(worker) if worker in self._world else None
        self._losses_since_commit += 1
        self._context.emit(WorkerLost(worker=worker, rank=rank, cause=cause))
        if rank is not None:
            self._begin_recovery([worker], cause, stack)

    def _begin_recovery(self, lost: list[str], cause: str, stack: str = "") -> None:
        if self._recovery is None:
            self._recovery = Recovery(known_at_s=time.monotonic(), world_before=self._world, step_before=self._step)
            self._recovery.broken = self._broken_at_s is not None
        self._recovery.formed = None
        self._recovery.lost.extend(lost)
        self._recovery.cause, self._recovery.stack = cause, stack
        for worker in lost:
            if worker in self._struck:
                self._recovery.drill, self._recovery.struck_at_s = self._struck[worker]

    def _take_in(self, at_s: float, event: Event) -> None:
        if isinstance(event, WorldBroken) and event.generation == self._generation:
            self._broken_at_s = self._broken_at_s or at_s
        if isinstance(event, WorldFormed) and event.generation == self._generation:
            self._broken_at_s, self._is_formed = None, True
        if self._recovery is not None and (ended := self._recovery.observe(event, at_s)):
            self._recovery = None
            self._context.emit(*ended)
        if isinstance(event, StepCommitted):
            if self._working_since_s is None:
                self._working_since_s = at_s
                self._drills = [(at_s + drill.after_s, drill) for _, drill in self._drills]
            self._step, self._losses_since_commit = event.step, 0
            self._vigil.step_took(event.step_s)

    def _strike(self) -> None:
        """Carry out the drills that are due: counted from the first committed step, when no earlier loss is being mended."""
        due = [drill for at_s, drill in self._drills if time.monotonic() >= at_s]
        if not due or self._recovery is not None:
            return
        self._drills = [(at_s, drill) for at_s, drill in self._drills if drill is not due[0]]
        worker = self._world[-1]
        pid = next((rank.pid for rank in _view_of(self._context).ranks if rank.worker == worker), 0)
        self._context.emit(DrillStarted(action=due[0].action, target=worker, pid=pid))
        self._struck[worker] = due[0].action, time.monotonic()
        handle = self._workers[worker].handle
        (handle.hang if due[0].action == "hang" else handle.die).remote()

    def _act(self, decision: Decision, slots: Slots) -> None:
        if isinstance(decision, GiveUp):
            raise UserCodeError("training", f"The run was given up: {decision.reason}.", "")
        if isinstance(decision, Start):
            taken = {known.slot for known in self._living()}
            free = [number for number in slots.held if number not in taken]
            for number in free[: decision.num_ranks]:
                self._start(number, slots)
            for _ in range(decision.num_spares):
                self._start(None, slots)
        if isinstance(decision, Form):
            self._form(decision.workers, slots)
        if isinstance(decision, End):
            self._end(decision.workers, slots)

    def _end(self, workers: tuple[str, ...], slots: Slots) -> None:
        """Let workers go that the run has outgrown, and their slots with them."""
        for worker in workers:
            known = self._workers.pop(worker)
            self._vigil.forget(worker)
            ray.kill(known.handle)
            self._context.emit(WorkerEnded(worker=worker))
        slots.give_back(self._max_workers, used={known.slot for known in self._living() if known.slot is not None})

    def _start(self, slot: int | None, slots: Slots) -> None:
        self._num_named += 1
        worker = f"w{self._num_named}"
        options: dict[str, Any] = {}
        if slot is not None:
            options = {"placement_group": slots.group(slot), "placement_group_bundle_index": 0}
            if not self._context.cluster.simulated_gpus:
                options["num_gpus"] = self._spec.gpus_per_worker
        handle = Worker.options(  # type: ignore[attr-defined]
            name=name_of(self._context.name, worker), namespace=NAMESPACE, lifetime="detached", **options
        ).remote(self._context.host, self._context.folder, self._spec, worker, slot)
        self._know(worker, handle, slot)

    def _know(self, worker: str, handle: Any, slot: int | None) -> None:
        self._workers[worker] = _Known(
            handle=handle, slot=slot, ready=handle.ready.remote(), outcome=handle.outcome.remote(), state=WorkerState(worker=worker)
        )

    def _form(self, workers: tuple[str, ...], slots: Slots) -> None:
        """Publish the next world to all workers; who lost a peer enters at once, the others after a commit."""
        mended = (
            self._broken_at_s is not None
            or any(self._workers[worker].state.lost for worker in self._world if worker in self._workers)
            or any(worker not in self._workers for worker in self._world)
        )
        self._generation += 1
        self._broken_at_s, self._is_formed = None, False
        generation = Generation(
            number=self._generation, workers=workers, store_port=self._workers[workers[0]].store_port, urgent=mended
        )
        taken = {self._workers[worker].slot for worker in workers}
        free = [number for number in slots.held if number not in taken]
        for worker in workers:
            if self._workers[worker].slot is None and free:
                self._workers[worker].slot = free.pop(0)  # a spare takes the place of who was lost
        self._world = workers
        for known in self._living():
            known.handle.assign.remote(generation)

    def _living(self) -> Iterator[_Known]:
        return (known for known in self._workers.values() if not known.state.lost)

    def _save_outputs(self) -> None:
        """Ask the first rank that lives for the names that come back; of a stopped run those that were set."""
        if not self._spec.outputs:
            return
        for worker in self._world:
            known = self._workers.get(worker)
            if known is None or known.state.lost:
                continue
            try:
                names = self._spec.outputs
                if self._context.stop_asked.is_set():
                    there = ray.get(known.handle.names_set.remote(), timeout=SAVE_TIMEOUT_S)
                    names = tuple(name for name in names if name in there)
                self._context.emit(*ray.get(known.handle.save_outputs.remote(names), timeout=SAVE_TIMEOUT_S))
            except ray.exceptions.RayActorError:
                continue
            except ray.exceptions.RayTaskError as exc:
                if isinstance(exc.cause, UserCodeError):
                    raise exc.cause from None
                raise
            return
        if self._world:
            raise UserCodeError("training", "All ranks died before they could save what -o names.", "")

    def _end_workers(self) -> None:
        for _, drill in self._drills:
            self._context.emit(DrillEnded(action=drill.action, passed=False, verdict="the run ended before the drill began"))
        for known in self._living():
            ray.kill(known.handle)


def _view_of(context: RunContext) -> RunView:
    log = Log(context.cluster.log_path)
    try:
        records = list(log.read_all(run=context.name))
    finally:
        log.close()
    begun = max(place for place, record in enumerate(records) if isinstance(record.event, RunAccepted))
    return fold_all(RunView(name=context.name), records[begun:])


def _folded(event: LinesPrinted) -> LinesPrinted:
    return replace(event, lines=(), num_dropped=event.num_dropped + len(event.lines))


def _cause(error: Exception) -> str:
    text = str(error)
    if "NODE_OUT_OF_MEMORY" in text:
        return "its node ran out of memory"
    if "node has died" in text or "node is dead" in text:
        return "its node was lost"
    return "its process was killed, or crashed in native code"
