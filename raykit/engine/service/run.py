"""The host's side of a service: has as many replicas as its requests need, and ends them when they are not needed.

Ingress and replicas are detached actors with names, so that requests are answered while the host is away; a host that
comes back finds them by those names.
"""

from __future__ import annotations

import itertools
import math
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from raykit.cluster.home import write_secret
from raykit.commands import Command, Drill, Stop
from raykit.engine.pipeline.calls import Ready
from raykit.engine.run import RunContext, StoppedError, UserCodeError
from raykit.engine.service.ingress import Ingress
from raykit.engine.service.replica import ServiceReplica
from raykit.engine.setting import NAMESPACE
from raykit.engine.slots import Slots
from raykit.errors import RunError
from raykit.events import (
    DrillEnded,
    DrillStarted,
    Event,
    ReplicaEnded,
    ReplicaLost,
    ReplicaSampled,
    ReplicasWanted,
    RequestsSampled,
    RunStarted,
    ServiceOpened,
    StageSampled,
)
from raykit.policy.serving import Calls, Load, Steady, replicas_needed
from raykit.spec import ServiceSpec
from raykit.spec.service import TOKEN_FILE
from raykit.views import RunView

TICK_S = 0.05
SAMPLE_S = 1.0
DRAIN_S = 30.0
DISMISS_S = 5.0
MAX_START_DEATHS = 3
KEPT = 0.98  # of what is known of calls, at each new count


@dataclass(slots=True)
class _Member:
    """A replica: being built (``ready``), at work, or leaving. ``ping`` is an answer that breaks when it dies."""

    name: str
    slot: int
    handle: Any
    ready: Any = None
    ping: Any = None
    leaving: Any = None
    pid: int = 0


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
        self._spec: ServiceSpec = context.spec
        self._members: dict[str, _Member] = {}
        self._steady = Steady()
        self._wanted = 0
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
        self._numbers = itertools.count(1)

    def execute(self) -> None:
        spec, view = self._spec, self._context.view()
        held = frozenset(slot.holder for slot in view.held)
        slots = Slots(self._context, num_cpus=spec.stage.num_cpus, num_gpus=spec.stage.num_gpus, already_held=held)
        ingress = self._ingress()
        try:
            slots.take_up()
            self._find(view)
            self._context.emit(ServiceOpened(url=ray.get(ingress.url.remote()), slo_s=spec.slo_s))
            self._has_started = view.started_at_unix_s is not None
            if not spec.replicas[0]:
                self._begin()
            while not self._context.stop_asked.is_set():
                self._look(slots, ingress)
            closed, deadline_s = ingress.close.remote(), time.monotonic() + DRAIN_S
            while not ray.wait([closed], timeout=TICK_S)[0] and time.monotonic() < deadline_s:
                self._look(slots, ingress)
        finally:
            for member in list(self._members.values()):
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
        elif isinstance(command, Drill) and command.action == "kill-worker":
            self._drill = (time.monotonic() + command.after_s, command)
        else:
            raise RunError(f"{self._context.name} is a service, which cannot do that.", "It knows stop and drill kill-worker.")

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
        return actor.remote(self._context.host, folder, self._spec, token_file.read_text())

    def _find(self, view: RunView) -> None:
        """Take up the replicas of an earlier host, also those that were being built."""
        prefix, last = self._actor_name(""), 0
        for named in ray.util.list_named_actors(all_namespaces=True):
            if named["namespace"] == NAMESPACE and named["name"].startswith(prefix):
                name = named["name"].removeprefix(prefix)
                slot, number = map(int, name.rpartition("-")[2].split("."))
                handle = ray.get_actor(named["name"], namespace=NAMESPACE)
                self._members[name] = _Member(name=name, slot=slot - 1, handle=handle, ready=handle.ready.remote())
                last = max(last, number)
        for replica in (each.replica for stage in view.stages for each in stage.replicas):
            last = max(last, int(replica.rpartition(".")[2]))
        gone = [
            each.replica for stage in view.stages for each in stage.replicas if not each.gone and each.replica not in self._members
        ]
        self._context.emit(*(ReplicaEnded(stage=self._spec.stage.name, replica=replica) for replica in gone))
        self._numbers = itertools.count(last + 1)

    def _look(self, slots: Slots, ingress: Any) -> None:
        """Take in what has happened, and have as many replicas as are needed; blocking up to a tick."""
        self._want()
        slots.ask(self._wanted)
        slots.look()
        used = {member.slot for member in self._members.values()}
        staying = sorted((each for each in self._members.values() if each.leaving is None), key=lambda each: each.ready is not None)
        for number in [number for number in slots.held if number not in used][: max(0, self._wanted - len(staying))]:
            self._start(number, slots)
        for member in staying[self._wanted :]:
            member.leaving = ingress.dismiss.remote(member.name)
        slots.give_back(self._wanted, used={member.slot for member in self._members.values()})
        self._hear(ingress)
        self._strike()
        if time.monotonic() - self._sampled_s > SAMPLE_S:
            self._sampled_s = time.monotonic()
            self._seat(ingress)
            self._sample()

    def _want(self) -> None:
        least, most = self._spec.replicas
        requests = self._requests
        needed = max(least, len(self._members))  # those of an earlier host stay until the ingress has told
        if requests is not None:
            load = Load(rate_s=requests.rate_s, num_open=requests.num_open, idle_s=requests.idle_s)
            needed = replicas_needed(load, capacity_s=self._capacity_s, least=least, most=most, slo_s=self._spec.slo_s)
        wanted = self._steady.take(time.monotonic(), needed)
        if wanted != self._wanted:
            self._wanted = wanted
            self._context.emit(ReplicasWanted(count=wanted))

    @property
    def _capacity_s(self) -> float:
        """How many requests a second a replica can answer; infinite until one has answered some."""
        stage, cost = self._spec.stage, self._calls.cost
        return cost.capacity_s(batch_size=stage.batch_size or stage.concurrency, slo_s=self._spec.slo_s) if cost else math.inf

    def _start(self, slot: int, slots: Slots) -> None:
        spec = self._spec.stage
        name = f"{spec.name}-{slot + 1}.{next(self._numbers)}"
        options: dict[str, Any] = {"runtime_env": spec.runtime_env} if spec.runtime_env else {}
        actor = ray.remote(
            num_cpus=spec.num_cpus,
            num_gpus=spec.num_gpus,
            name=self._actor_name(name),
            namespace=NAMESPACE,
            lifetime="detached",
            scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=slots.group(slot)),
            **options,
        )(ServiceReplica)
        handle = actor.remote(self._context.host, self._context.folder, spec, name)
        self._members[name] = _Member(name=name, slot=slot, handle=handle, ready=handle.ready.remote())

    def _actor_name(self, replica: str) -> str:
        return f"replica:{self._context.name}:{replica}"

    def _hear(self, ingress: Any) -> None:
        waits = {ref: member for member in self._members.values() for ref in (member.ready, member.ping, member.leaving) if ref}
        if not waits:
            self._context.stop_asked.wait(TICK_S)
            return
        over, _ = ray.wait(list(waits), num_returns=len(waits), timeout=TICK_S)
        for ref in over:
            member = waits[ref]
            if member.name not in self._members:
                continue
            if ref is member.leaving:
                self._end(member)
                continue
            try:
                answer = ray.get(ref)
            except ray.exceptions.RayActorError:
                self._lose(member, "its process was killed, or crashed in native code", ingress)
                continue
            if ref is member.ready:
                self._built(member, answer, ingress)
            member.ping = None

    def _built(self, member: _Member, ready: Ready, ingress: Any) -> None:
        if ready.failure is not None:
            if not self._has_started or self._start_deaths + 1 >= MAX_START_DEATHS:
                raise UserCodeError(*ready.failure)
            self._lose(member, ready.failure[1], ingress)
            ray.kill(member.handle)
            return
        self._start_deaths = 0
        member.ready, member.pid = None, ready.pid
        ingress.admit.remote(member.name, member.handle)
        self._begin()
        if self._struck is not None and member.slot == self._struck.slot:
            failed = self._num_failed - self._struck.num_failed
            verdict = f"another was there after {time.monotonic() - self._struck.at_s:.1f} s; meanwhile {failed} requests failed"
            self._context.emit(DrillEnded(action="kill-worker", passed=not failed, verdict=verdict))
            self._struck = None

    def _begin(self) -> None:
        """Say that it takes requests, once."""
        if not self._has_started:
            self._has_started = True
            self._context.emit(RunStarted())

    def _lose(self, member: _Member, cause: str, ingress: Any) -> None:
        """Have another in its place; a service whose replicas cannot be built, one after the other, has failed."""
        stage = self._spec.stage.name
        if member.ready is not None:
            self._start_deaths += 1
            if self._start_deaths >= MAX_START_DEATHS:
                raise UserCodeError(stage, f"{self._start_deaths} replicas were lost while they were built: {cause}", "")
        again = 0
        with suppress(ray.exceptions.RayError):  # an ingress that died too has nothing to give to others
            again = ray.get(ingress.dismiss.remote(member.name), timeout=DISMISS_S)
        self._context.emit(ReplicaLost(stage=stage, replica=member.name, cause=cause, num_rows_again=again))
        self._forget(member)

    def _end(self, member: _Member) -> None:
        ray.kill(member.handle)
        self._context.emit(ReplicaEnded(stage=self._spec.stage.name, replica=member.name))
        self._forget(member)

    def _forget(self, member: _Member) -> None:
        """Write its last counts down, and keep nothing of it."""
        self._calls_of.pop(member.name, None)
        if (counts := self._counts.pop(member.name, None)) is not None:
            self._context.emit(counts)
        del self._members[member.name]

    def _seat(self, ingress: Any) -> None:
        """Ask each replica whether it is there, and tell an ingress that came back of those that are."""
        for member in self._members.values():
            if member.ready is None and member.ping is None:
                member.ping = member.handle.ping.remote()
        try:
            seated = ray.get(ingress.seated.remote(), timeout=SAMPLE_S)
        except ray.exceptions.RayError:  # it is on its way back
            return
        for member in self._members.values():
            if member.ready is None and member.leaving is None and member.name not in seated:
                ingress.admit.remote(member.name, member.handle)

    def _sample(self) -> None:
        """Write down what has changed."""
        requests = (replace(self._requests, idle_s=None),) if self._requests else ()
        told = (*self._counts.values(), *requests, self._sampled())
        self._context.emit(*(event for event in told if event not in self._told))
        self._told = told

    def _sampled(self) -> StageSampled:
        requests = self._requests
        return StageSampled(
            stage=self._spec.stage.name,
            num_replicas=sum(member.ready is None for member in self._members.values()),
            rows_waiting=requests.num_waiting if requests else 0,
            rows_in=requests.num_done + requests.num_failed + requests.num_open if requests else 0,
            rows_out=requests.num_done if requests else 0,
            num_bad=self._num_failed,
            word="bottleneck" if requests and requests.num_waiting and self._wanted == self._spec.replicas[1] else "balanced",
        )

    @property
    def _num_failed(self) -> int:
        return self._requests.num_failed if self._requests else 0

    def _strike(self) -> None:
        """Carry out a drill whose time has come."""
        if self._drill is None or time.monotonic() < self._drill[0]:
            return
        member = next((member for member in self._members.values() if member.ready is None and member.leaving is None), None)
        if member is None:
            return
        self._drill = None
        self._context.emit(DrillStarted(action="kill-worker", target=member.name, pid=member.pid))
        self._struck = _Struck(slot=member.slot, at_s=time.monotonic(), num_failed=self._num_failed)
        ray.kill(member.handle)
