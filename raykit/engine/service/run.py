"""The host's side of a service: has as many replicas at work as its requests need, in slots that it asks for and gives back."""

from __future__ import annotations

import math
import queue
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raykit.cluster.home import write_secret
from raykit.commands import Command, Drill, Hurry, Stop, Take, Update
from raykit.engine.losses import cause_of
from raykit.engine.pipeline.calls import Ready
from raykit.engine.run import RunContext, StoppedError, UserCodeError
from raykit.engine.service.ingress import SOURCE, Ingress
from raykit.engine.service.replicas import Member, Replicas
from raykit.engine.service.update import Updates
from raykit.engine.setting import NAMESPACE
from raykit.engine.slots import Slots
from raykit.errors import RunError
from raykit.events import (
    DrillEnded,
    DrillStarted,
    Event,
    ReplicaSampled,
    ReplicasWanted,
    RequestsSampled,
    RunStarted,
    ServiceOpened,
    ServiceUpdated,
    StageSampled,
    UpdateRefused,
)
from raykit.policy.serving import COLD, WARM, Calls, Load, Steady, replicas_needed
from raykit.policy.staffing import Demand, staffing
from raykit.spec.service import TOKEN_FILE

TICK_S = 0.05
SAMPLE_S = 1.0
DRAIN_S = 30.0
MAX_START_DEATHS = 3
KEPT = 0.98  # of what is known of calls, at each new count


@dataclass(frozen=True, slots=True, kw_only=True)
class _Struck:
    """A replica that a drill has killed, and how many requests had failed before."""

    slot: int
    at_s: float
    num_failed: int


class ServiceRun:
    """Drives a service from its start to its stop."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._updates = Updates(context.folder)
        self._update_asked = threading.Event()
        self._steady = Steady()
        self._wanted = 0
        self._hurry_asked = threading.Event()
        self._handed_on: queue.SimpleQueue[Take] = queue.SimpleQueue()
        self._has_started = False
        self._requests: RequestsSampled | None = None
        self._before = (0, 0)  # requests done and failed, as an ingress counted that is gone
        self._told: tuple[Event, ...] = ()
        self._counts: dict[str, ReplicaSampled] = {}
        self._calls = Calls()
        self._calls_of: dict[str, Calls] = {}
        self._start_deaths = 0
        self._sampled_s = 0.0
        self._drill: tuple[float, Drill] | None = None
        self._struck: _Struck | None = None
        self._wake = threading.Event()

    def execute(self) -> None:
        spec, view = self._updates.spec, self._context.view()
        self._told_version = view.service.version if view.service else 1
        held = frozenset(slot.holder for slot in view.held)
        slots = Slots(self._context, num_cpus=spec.stage.num_cpus, num_gpus=spec.stage.num_gpus, already_held=held)
        ingress = self._ingress()
        self._replicas = replicas = Replicas(self._context, self._updates, ingress, self._wake)
        try:
            slots.take_up()
            slots.look()
            replicas.take_up(view, slots)
            url = ray.get(ingress.url.remote())
            self._context.emit(ServiceOpened(url="" if self._context.cluster.elsewhere else url, slo_s=spec.slo_s))
            self._has_started = view.started_at_unix_s is not None
            if not spec.replicas[0]:
                self._begin()
            while not self._context.stop_asked.is_set():
                self._look(slots)
            closed, deadline_s = ingress.close.remote(), time.monotonic() + DRAIN_S
            while not ray.wait([closed], timeout=TICK_S)[0] and time.monotonic() < deadline_s:
                self._look(slots)
        finally:
            for member in replicas:
                self._end(member)
            ray.kill(ingress, no_restart=True)
            slots.release()
            if self._drill or self._struck:
                verdict = "the service was ended before another replica took its place"
                self._context.emit(DrillEnded(action="kill-worker", passed=False, verdict=verdict))
        raise StoppedError

    def command(self, command: Command) -> None:
        if isinstance(command, Stop):
            self._context.stop_asked.set()
        elif isinstance(command, Hurry):
            self._hurry_asked.set()
        elif isinstance(command, Take):
            self._handed_on.put(command)
        elif isinstance(command, Update):
            self._update_asked.set()
        elif isinstance(command, Drill) and command.action == "kill-worker":
            self._drill = (time.monotonic() + command.after_s, command)
        else:
            raise RunError(
                f"{self._context.name} is a service, which cannot do that.",
                "It knows stop and drill kill-worker; serve it again to update it.",
            )
        self._wake.set()

    def report(self, source: str, events: Sequence[Event], pulse: Any) -> list[Event]:
        """Count what ingress and replicas tell; their counts are written down with the next sample of the whole."""
        if isinstance(pulse, Calls):
            self._count(source, pulse)
        kept: list[Event] = []
        for event in events:
            if isinstance(event, RequestsSampled):
                self._requests = self._summed(event)
            elif isinstance(event, ReplicaSampled):
                self._counts[event.replica] = event
            else:
                kept.append(event)
        if source == SOURCE:
            self._wake.set()
        return kept

    def _count(self, replica: str, calls: Calls) -> None:
        """Know what calls cost, of late more than before."""
        new = calls.plus(self._calls_of.get(replica, Calls()), times=-1)
        self._calls_of[replica] = calls
        if new.num:
            self._calls = new.plus(self._calls, times=KEPT)

    def _summed(self, event: RequestsSampled) -> RequestsSampled:
        """Count on where an ingress began anew."""
        done, failed = self._before
        if self._requests and event.num_done + done < self._requests.num_done:
            done, failed = self._before = self._requests.num_done, self._requests.num_failed
        return replace(event, num_done=event.num_done + done, num_failed=event.num_failed + failed)

    def _ingress(self) -> Any:
        """Find the ingress, or start it."""
        folder = self._context.folder
        token_file = folder / TOKEN_FILE
        if not token_file.exists():
            write_secret(token_file, secrets.token_urlsafe(32))
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = Ingress.options(  # type: ignore[attr-defined]
            name=f"ingress:{self._context.name}",
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            scheduling_strategy=here,
        )
        return actor.remote(self._context.host, folder, self._context.name, token_file.read_text())

    def _look(self, slots: Slots) -> None:
        """Take in what has happened, and have as many replicas as are needed; blocking up to a tick."""
        if self._update_asked.is_set():
            self._update()
        self._want()
        slots.want(self._wanted)
        if self._hurry_asked.is_set():
            self._hurry_asked.clear()
            slots.hurry()
        while not self._handed_on.empty():
            handed_on = self._handed_on.get()
            slots.take(handed_on.slot, handed_on.by_unix_s)
        slots.look()
        self._staff(slots)
        slots.give_back(used=self._replicas.slots_used)
        self._hear(slots)
        self._strike()
        if time.monotonic() - self._sampled_s > SAMPLE_S:
            self._sampled_s = time.monotonic()
            self._replicas.look()
            self._sample()

    def _staff(self, slots: Slots) -> None:
        """Fill the slots that are there, have others get warm, and a new version take the place of the one before."""
        replicas, updates = self._replicas, self._updates
        demand = Demand(
            wanted=self._wanted,
            most=updates.spec.replicas[1],
            num_warm=replicas.num_warm_wanted,
            current=updates.current,
            asked=updates.asked,
            bound=replicas.holds_gpus,
        )
        plan = staffing([member.planned for member in replicas], slots.held, demand)
        for name in plan.leave:
            replicas.unseat(replicas[name])
        for name, slot in plan.seat:
            self._seat(replicas[name], slot)
        for name in plan.end:
            self._end(replicas[name])
        for place, version in plan.start:
            replicas.start(place, version, slots)
        if updates.current != self._told_version and all(each.slot is None or each.version == updates.current for each in replicas):
            self._told_version, spec = updates.current, updates.spec
            self._context.emit(ServiceUpdated(version=updates.current, slo_s=spec.slo_s, priority=spec.priority))

    def _update(self) -> None:
        """Try the version that was asked for last, and no longer one that was asked for before it."""
        self._update_asked.clear()
        self._updates.look()
        for member in self._replicas:
            if member.version > self._updates.current and member.version != self._updates.asked:
                self._end(member)

    def _refuse(self, member: Member, failure: tuple[str, str, str]) -> None:
        """Go on without the version of a replica that could not be built."""
        where, error, traceback_text = failure
        self._context.emit(UpdateRefused(version=member.version, where=where, error=error, traceback_text=traceback_text))
        self._updates.refuse()
        self._start_deaths = 0

    def _end(self, member: Member) -> None:
        self._replicas.end(member)
        self._forget(member)

    def _want(self) -> None:
        spec = self._updates.spec
        least, most = spec.replicas
        requests, patience = self._requests, WARM if self._replicas.num_warm_wanted else COLD
        needed = max(least, len(self._replicas.slots_used))  # those of an earlier host stay until the ingress has told
        if requests is not None:
            load = Load(rate_s=requests.rate_s, num_open=requests.num_open, idle_s=requests.idle_s)
            needed = replicas_needed(load, capacity_s=self._capacity_s, least=least, most=most, slo_s=spec.slo_s, patience=patience)
        wanted = min(most, self._steady.take(time.monotonic(), needed, patience))
        if wanted != self._wanted:
            self._wanted = wanted
            self._context.emit(ReplicasWanted(count=wanted))

    @property
    def _capacity_s(self) -> float:
        """How many requests a second a replica can answer; infinite until one has answered some."""
        spec, cost = self._updates.spec, self._calls.cost
        batch_size = spec.stage.batch_size or spec.stage.concurrency
        return cost.capacity_s(batch_size=batch_size, slo_s=spec.slo_s) if cost else math.inf

    def _seat(self, member: Member, slot: int) -> None:
        self._replicas.seat(member, slot)
        if member.is_built:
            self._is_at_work(member)

    def _is_at_work(self, member: Member) -> None:
        self._begin()
        if self._struck is not None and member.slot == self._struck.slot:
            failed = self._num_failed - self._struck.num_failed
            verdict = f"another was there after {time.monotonic() - self._struck.at_s:.1f} s; meanwhile {failed} requests failed"
            self._context.emit(DrillEnded(action="kill-worker", passed=not failed, verdict=verdict))
            self._struck = None

    def _hear(self, slots: Slots) -> None:
        built, gone = self._replicas.hear(slots.pause_s(TICK_S))
        for member, error in gone:
            cause, kind = cause_of(error)
            if kind == "node":  # nobody is to be started in a slot that went with it
                slots.doubt()
            self._lose(member, cause, is_its_own=kind != "node")
        for member, ready in built:
            self._built(member, ready)

    def _built(self, member: Member, ready: Ready) -> None:
        is_trial = member.version == self._updates.asked
        if ready.failure is not None:
            if is_trial:
                self._refuse(member, ready.failure)
                self._end(member)
                return
            if not self._has_started or self._start_deaths + 1 >= MAX_START_DEATHS:
                raise UserCodeError(*ready.failure)
            self._start_deaths += 1
            self._lose(member, ready.failure[1])
            return
        self._start_deaths = 0
        if is_trial:
            self._updates.take(member.version)
        if member.slot is not None:
            self._replicas.admit(member)
            self._is_at_work(member)

    def _begin(self) -> None:
        """Say that it takes requests, once."""
        if not self._has_started:
            self._has_started = True
            self._context.emit(RunStarted())

    def _lose(self, member: Member, cause: str, *, is_its_own: bool = True) -> None:
        """Have another in its place; a service whose replicas cannot be built, one after the other, has failed.

        The loss of a node (not ``is_its_own``) says nothing of that.
        """
        if not member.is_built and is_its_own:
            self._start_deaths += 1
            if self._start_deaths >= MAX_START_DEATHS:
                error = f"{self._start_deaths} replicas were lost while they were built: {cause}"
                failure = (self._updates.spec.stage.name, error, "")
                if member.version != self._updates.asked:
                    raise UserCodeError(*failure)
                self._refuse(member, failure)
        self._replicas.lose(member, cause)
        self._forget(member)

    def _forget(self, member: Member) -> None:
        """Write its last counts down, and keep nothing of it."""
        self._calls_of.pop(member.name, None)
        if (counts := self._counts.pop(member.name, None)) is not None:
            self._context.emit(counts)

    def _sample(self) -> None:
        """Write down what has changed."""
        requests = (replace(self._requests, idle_s=None),) if self._requests else ()
        told = (*self._counts.values(), *requests, self._sampled())
        self._context.emit(*(event for event in told if event not in self._told))
        self._told = told

    def _sampled(self) -> StageSampled:
        requests = self._requests
        return StageSampled(
            stage=self._updates.spec.stage.name,
            num_replicas=sum(member.is_at_work for member in self._replicas),
            rows_waiting=requests.num_waiting if requests else 0,
            rows_in=requests.num_done + requests.num_failed + requests.num_open if requests else 0,
            rows_out=requests.num_done if requests else 0,
            num_bad=self._num_failed,
            word="bottleneck"
            if requests and requests.num_waiting and self._wanted == self._updates.spec.replicas[1]
            else "balanced",
        )

    @property
    def _num_failed(self) -> int:
        return self._requests.num_failed if self._requests else 0

    def _strike(self) -> None:
        """Carry out a drill whose time has come."""
        if self._drill is None or time.monotonic() < self._drill[0]:
            return
        member = next((each for each in self._replicas if each.is_at_work and each.leaving is None), None)
        if member is None or member.slot is None:
            return
        self._drill = None
        self._context.emit(DrillStarted(action="kill-worker", target=member.name, pid=member.pid))
        self._struck = _Struck(slot=member.slot, at_s=time.monotonic(), num_failed=self._num_failed)
        ray.kill(member.handle)
