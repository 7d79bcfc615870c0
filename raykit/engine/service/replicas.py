"""The replicas of a service as its host knows them: built, at work in a slot, warm without one, lost.

A warm replica is built and holds nothing but its memory: it is at work as soon as there is a slot for it. Ingress and
replicas are detached actors with names, so that requests are answered while the host is away; a host that comes back finds
them by those names.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray

from raykit.engine.losses import GONE
from raykit.engine.run import RunContext, wake_at
from raykit.engine.service.replica import ServiceReplica
from raykit.engine.service.update import Updates
from raykit.engine.setting import NAMESPACE
from raykit.engine.slots import Slots
from raykit.events import ReplicaEnded, ReplicaLost
from raykit.policy.staffing import Replica
from raykit.views import RunView

ASK_S = 1.0
DISMISS_S = 5.0


@dataclass(slots=True)
class Member:
    """A replica: being built (``ready``), at work in a slot, leaving it, or warm.

    ``ping`` is an answer that breaks when it dies.
    """

    name: str
    handle: Any
    ready: Any
    version: int
    slot: int | None = None
    ping: Any = None
    leaving: Any = None
    pid: int = 0

    @property
    def is_built(self) -> bool:
        return self.ready is None

    @property
    def is_at_work(self) -> bool:
        return self.is_built and self.slot is not None

    @property
    def planned(self) -> Replica:
        """What the policy has to know of it."""
        is_leaving = self.leaving is not None
        return Replica(name=self.name, version=self.version, slot=self.slot, is_built=self.is_built, is_leaving=is_leaving)


class Replicas:
    """All replicas of a service, by name. Called from the host's loop alone."""

    def __init__(self, context: RunContext, updates: Updates, ingress: Any, wake: threading.Event) -> None:
        self._context, self._updates, self._ingress, self._wake = context, updates, ingress, wake
        self.holds_gpus = context.cluster.has_real_gpus(updates.spec.stage.num_gpus)
        self._prefix = f"replica:{context.name}:"
        self._members: dict[str, Member] = {}
        self._numbers = itertools.count(1)

    def __iter__(self) -> Iterator[Member]:
        return iter(list(self._members.values()))

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, name: str) -> Member:
        return self._members[name]

    @property
    def slots_used(self) -> set[int]:
        return {each.slot for each in self._members.values() if each.slot is not None}

    @property
    def num_warm_wanted(self) -> int:
        """How many wait beside those at work, as far as the most replicas allow."""
        if self.holds_gpus:  # what is built without its GPU would have to be built again
            return 0
        spec = self._updates.spec
        if spec.num_warm is not None:
            return spec.num_warm
        is_elastic = spec.replicas[0] < spec.replicas[1]
        return 1 if is_elastic and self._context.cluster.profile != "small" else 0

    def take_up(self, view: RunView, slots: Slots) -> None:
        """Find those of an earlier host, also those that were being built, and give its slots to those at work."""
        for named in ray.util.list_named_actors(all_namespaces=True):
            if named["namespace"] == NAMESPACE and named["name"].startswith(self._prefix):
                with suppress(ValueError):  # it died in between
                    handle = ray.get_actor(named["name"], namespace=NAMESPACE)
                    version, slot, name = named["name"].removeprefix(self._prefix).split(":")
                    self._members[name] = self._member(name, handle, int(version), int(slot) if self.holds_gpus else None)
        known = [each for stage in view.stages for each in stage.replicas]
        gone = [each.replica for each in known if not each.gone and each.replica not in self._members]
        self._context.emit(*(ReplicaEnded(stage=self._stage, replica=replica) for replica in gone))
        last = max((int(name.rpartition("-")[2]) for name in (*self._members, *(each.replica for each in known))), default=0)
        self._numbers = itertools.count(last + 1)
        at_work = [self._members[name] for name in sorted(self._seated()) if name in self._members]
        free = (slot for slot in slots.held if slot not in self.slots_used)
        for member, slot in zip([each for each in at_work if each.slot is None], free, strict=False):
            member.slot = slot

    def start(self, slot: int | None, version: int, slots: Slots) -> None:
        """Build one of a version, for a slot or to be warm."""
        stage, payload = self._updates.stage(version), self._updates.payload(version)
        name = f"{stage.name}-{next(self._numbers)}"
        # Its slot is in its name: a GPU's replica is bound to it.
        actor_name = f"{self._prefix}{version}:{'' if slot is None else slot}:{name}"
        options: dict[str, Any] = {"name": actor_name, "namespace": NAMESPACE, "lifetime": "detached", "num_cpus": 0}
        if self.holds_gpus:
            options |= {"num_cpus": stage.num_cpus, "num_gpus": stage.num_gpus}
        if slot is not None:
            options |= slots.place(slot, within=self.holds_gpus)
        if stage.runtime_env:
            options["runtime_env"] = stage.runtime_env
        actor = ray.remote(**options)(ServiceReplica)
        handle = actor.remote(self._context.host, self._context.run_folder, payload, stage, name)
        self._members[name] = self._member(name, handle, version, slot)

    def seat(self, member: Member, slot: int) -> None:
        """Have it at work in a slot, as soon as it is built."""
        member.slot = slot
        if member.is_built:
            self.admit(member)

    def admit(self, member: Member) -> None:
        """Have requests sent to it."""
        stage = self._updates.stage(member.version)
        self._ingress.admit.remote(member.name, member.handle, stage.batch_size or stage.concurrency)

    def unseat(self, member: Member) -> None:
        """Have it answer what it has, and then be without a slot."""
        if not member.is_built:
            member.slot = None
            return
        member.leaving = self._ingress.dismiss.remote(member.name)
        wake_at(member.leaving, self._wake)

    def look(self) -> None:
        """Ask each whether it is there, and tell an ingress that came back who is at work."""
        for member in self._members.values():
            if member.is_built and member.ping is None:
                member.ping = member.handle.ping.remote()
                wake_at(member.ping, self._wake)
        seated = self._seated()
        for member in self._members.values():
            if member.is_at_work and member.leaving is None and member.name not in seated:
                self.admit(member)
            elif member.slot is None and member.leaving is None and member.name in seated:
                self.unseat(member)

    def hear(self, timeout_s: float) -> tuple[list[tuple[Member, Any]], list[tuple[Member, Exception]]]:
        """Give those that were built, each with what it says, and those that are gone, with what tells it.

        Blocks up to ``timeout_s``, or until a wake.
        """
        self._wake.wait(timeout_s)
        self._wake.clear()
        members = self._members.values()
        waits = {ref: each for each in members for ref in (each.ready, each.ping, each.leaving) if ref is not None}
        over, _ = ray.wait(list(waits), num_returns=len(waits), timeout=0) if waits else ([], [])
        built: list[tuple[Member, Any]] = []
        gone: dict[str, tuple[Member, Exception]] = {}
        for ref in over:
            member = waits[ref]
            if ref is member.leaving:
                member.leaving = member.slot = None
                continue
            try:
                answer = ray.get(ref)
            except GONE as exc:
                gone[member.name] = member, exc
                continue
            if ref is member.ready:
                member.ready, member.pid = None, answer.pid
                built.append((member, answer))
            else:
                member.ping = None
        return [(member, answer) for member, answer in built if member.name not in gone], list(gone.values())

    def lose(self, member: Member, cause: str) -> None:
        """Take one as lost, and have its requests answered by others."""
        num_again = 0
        with suppress(ray.exceptions.RayError):  # an ingress that died too has nothing to give to others
            num_again = ray.get(self._ingress.dismiss.remote(member.name), timeout=DISMISS_S)
        self._context.emit(ReplicaLost(stage=self._stage, replica=member.name, cause=cause, num_rows_again=num_again))
        self._remove(member)

    def end(self, member: Member) -> None:
        self._context.emit(ReplicaEnded(stage=self._stage, replica=member.name))
        self._remove(member)

    @property
    def _stage(self) -> str:
        return self._updates.spec.stage.name

    def _member(self, name: str, handle: Any, version: int, slot: int | None) -> Member:
        member = Member(name, handle, handle.ready.remote(), version, slot)
        wake_at(member.ready, self._wake)
        return member

    def _remove(self, member: Member) -> None:
        ray.kill(member.handle)
        del self._members[member.name]

    def _seated(self) -> set[str]:
        """Name those to whom the ingress gives requests; none while it is on its way back."""
        try:
            seated: set[str] = ray.get(self._ingress.seated.remote(), timeout=ASK_S)
        except ray.exceptions.RayError:
            return set()
        return seated
