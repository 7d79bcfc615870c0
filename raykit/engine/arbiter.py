"""The arbiter: asks elastic training for slots that runs of a higher priority wait for, and tells it when that is over.

It keeps nothing: who holds, who lacks and who lends stands in the runs' views, so a hub that comes back goes on from there.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import ray

from raykit.commands import Command, Hurry, Lend
from raykit.engine.claims import Bundle, Claims
from raykit.engine.registry import Registry
from raykit.errors import RunError
from raykit.policy.lending import Lender, Loan, Slots, Want, loans
from raykit.spec import RunSpec, ServiceSpec, TrainSpec
from raykit.spec.priority import RANKS
from raykit.views import RunView

LOOK_S = 0.25
GLANCE_S = 0.005  # at the log's version, which costs microseconds
TOLD_S = 0.01  # so long the next look waits for hosts to take what they are told
ON_THE_WAY_S = 1.0
PATIENCE_S = 2.0  # a run that is no training is given so long to start by itself

logger = logging.getLogger(__name__)

Standing = tuple[object, ...]
"""What of a view decides who lends to whom."""

Slot = tuple[float, float, int]
"""CPUs, GPUs, and how many of these together."""

Tell = Callable[[str, Command], Awaitable[None]]
"""Gives a run a command."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """A run that goes on: what it wants and how it stands."""

    spec: RunSpec
    view: RunView

    @property
    def priority(self) -> int:
        return RANKS[self.view.priority]

    @property
    def is_elastic(self) -> bool:
        """Whether it is a training that raykit's own engine drives."""
        return isinstance(self.spec, TrainSpec) and self.is_ours

    @property
    def is_ours(self) -> bool:
        """Whether raykit places it."""
        return not isinstance(self.spec, TrainSpec) or self.spec.engine == "raykit"

    @property
    def tells_slots(self) -> bool:
        """Whether it says at once what Ray has given to it; others only when their processes are up."""
        return self.is_elastic or isinstance(self.spec, ServiceSpec)

    @property
    def slot(self) -> Slot | None:
        """What one of its slots is, where it asks Ray for one after the other."""
        if isinstance(self.spec, ServiceSpec):
            return self.spec.stage.num_cpus, self.spec.stage.num_gpus, 1
        if isinstance(self.spec, TrainSpec) and self.is_elastic:
            return self.spec.cpus_per_worker, self.spec.gpus_per_worker, self.spec.group
        return None

    @property
    def has_started(self) -> bool:
        return self.view.started_at_unix_s is not None

    @property
    def num_held(self) -> int:
        return len(self.view.held)

    @property
    def held(self) -> Slots:
        """What its slots are together."""
        return sum(slot.num_cpus for slot in self.view.held), sum(slot.num_gpus for slot in self.view.held)


class Arbiter:
    """Looks at the runs of a cluster, and commands loans."""

    def __init__(self, registry: Registry, tell: Tell) -> None:
        self._registry, self._tell = registry, tell
        self._specs: dict[tuple[str, int], RunSpec] = {}
        self._claims = Claims()
        self._claiming: asyncio.Future[None] | None = None
        self._told: dict[str, asyncio.Future[None]] = {}

    async def watch(self) -> None:
        """Look for ever. What breaks a look does not break the next."""
        looked: tuple[Standing, ...] = ()
        looked_s = 0.0
        while True:
            version, going_on = self._registry.log.version(), list[RunView]()
            try:
                views = await asyncio.to_thread(self._registry.views)
                going_on = [view for view in reversed(views) if not view.ended]  # the oldest first
                standing = tuple(map(standing_of, going_on))
                # What Ray has to give changes without an event.
                if standing != looked or time.monotonic() - looked_s > LOOK_S:
                    looked, looked_s = standing, time.monotonic()
                    await self._look(going_on, views)
                    if self._claiming is None or self._claiming.done():  # else it hears of this with a later look
                        self._claiming = asyncio.ensure_future(self._claim(claimed(self._parties(going_on))))
            except Exception:
                logger.exception("a look at who lends to whom broke off")
            await self._rest(version, is_sharing=len(going_on) > 1)

    async def _rest(self, version: int, *, is_sharing: bool) -> None:
        """Wait for the next look; where runs share, until the log has gained something since it had a version."""
        if not is_sharing:
            await asyncio.sleep(LOOK_S)
            return
        deadline_s = time.monotonic() + LOOK_S
        while self._registry.log.version() == version:
            if time.monotonic() > deadline_s:
                return
            await asyncio.sleep(GLANCE_S)

    async def _look(self, going_on: list[RunView], views: Sequence[RunView]) -> None:
        if not any(view.loan for view in going_on) and len(going_on) < 2:  # noqa: PLR2004  (one is alone)
            return
        parties = self._parties(going_on)
        coming = on_the_way(views, time.time())
        free = _most_of(await asyncio.to_thread(free_slots), coming)
        wanted = loans(lenders(parties), wants(parties, time.time()), free)
        commands: list[Command] = [each for party in parties if (each := lend(party, wanted.get(party.view.name), parties))]
        if max(coming) > 0:
            commands += [Hurry(run=party.view.name) for party in parties if party.tells_slots and max(lacks_of(party)) > 0]
        await self._tell_all(commands)

    async def _tell_all(self, commands: Sequence[Command]) -> None:
        """Tell hosts, and wait a moment for them; who still takes what it was told before hears what is new with a later look."""
        self._told = {run: told for run, told in self._told.items() if not told.done()}
        for run in {command.run for command in commands} - self._told.keys():
            mine = [command for command in commands if command.run == run]
            self._told[run] = asyncio.ensure_future(self._command(mine))
        if self._told:
            await asyncio.wait(self._told.values(), timeout=TOLD_S)

    async def _claim(self, held: Sequence[Bundle]) -> None:
        try:
            await asyncio.to_thread(self._claims.tell, held)
        except Exception:
            logger.exception("Ray's own arbiter was not told what is held")

    async def _command(self, commands: Sequence[Command]) -> None:
        for command in commands:
            try:
                await self._tell(command.run, command)
            except RunError as exc:  # it ended since, or its host is away: a later look sees which
                logger.info("%s was not told of slots: %s", command.run, exc)
            except Exception:
                logger.exception("%s was not told of slots", command.run)

    def parties(self) -> list[Party]:
        """Give the runs that go on, the oldest first."""
        return self._parties([view for view in reversed(self._registry.views()) if not view.ended])

    def _parties(self, views: list[RunView]) -> list[Party]:
        """Leave out what has no spec: plain Ray code that is observed, and runs whose folders were removed."""
        found: list[Party] = []
        for view in views:
            key = view.name, view.service.version if view.service else 1
            with suppress(RunError):
                spec = self._specs[key] = self._specs.get(key) or self._registry.spec(view.name)
                found.append(Party(spec=spec, view=view))
        return found


def claimed(parties: Sequence[Party]) -> list[Bundle]:
    """Give the slots that Ray's own arbiter cannot know of: all but those of Ray Train, which claims its own."""
    slots = [slot for party in parties if party.is_ours for slot in party.view.held]
    return [{"CPU": slot.num_cpus, "GPU": slot.num_gpus} for slot in slots]


def on_the_way(views: Sequence[RunView], now_unix_s: float) -> Slots:
    """Give what was given back a moment ago and nobody has yet: Ray counts it neither as free nor as somebody's at first."""
    cpus = gpus = 0.0
    recent = [view for view in views if now_unix_s - (view.ended_at_unix_s or now_unix_s) < ON_THE_WAY_S]
    for slot in (slot for view in recent for slot in view.slots):
        sign = (now_unix_s - (slot.released_at_unix_s or 0.0) < ON_THE_WAY_S) - (now_unix_s - slot.held_at_unix_s < ON_THE_WAY_S)
        cpus, gpus = cpus + sign * slot.num_cpus, gpus + sign * slot.num_gpus
    return cpus, gpus


def _most_of(these: Slots, those: Slots) -> Slots:
    return max(these[0], those[0]), max(these[1], those[1])


def standing_of(view: RunView) -> Standing:
    wanted = view.service.wanted if view.service else None
    has_replicas = all(stage.replicas for stage in view.stages)
    return view.name, view.state == "stopping", view.started_at_unix_s, view.held, view.resized_to, view.loan, wanted, has_replicas


def lenders(parties: Sequence[Party]) -> list[Lender]:
    """Give the elastic trainings that raykit's own engine drives; a replica's slots are one here."""
    return [
        Lender(
            run=party.view.name,
            priority=party.priority,
            slot=(spec.cpus_per_worker * spec.group, spec.gpus_per_worker * spec.group),
            num_held=party.num_held,
            least=_asked(spec, party.view)[0] if party.has_started else 0,
        )
        for party in parties
        if isinstance(spec := party.spec, TrainSpec) and party.is_elastic
    ]


def wants(parties: Sequence[Party], now_unix_s: float) -> list[Want]:
    """Say who lacks what; who does not tell its slots at once is given a while to start by itself."""
    found = []
    for party in parties:
        is_patient = not party.tells_slots and now_unix_s - (party.view.accepted_at_unix_s or now_unix_s) <= PATIENCE_S
        if max(lacks := lacks_of(party)) > 0 and not is_patient and party.view.state != "stopping":
            needs = _needs(party, lacks)
            found.append(Want(run=party.view.name, priority=party.priority, lacks=lacks, needs=needs, held=party.held))
    return found


def lacks_of(party: Party) -> Slots:
    """Give what a run lacks: a training up to its most, a service for its requests, others what they cannot start without."""
    spec = party.spec
    if isinstance(spec, TrainSpec) and party.is_elastic:
        missing = (_asked(spec, party.view)[1] - party.num_held) * spec.group
        return missing * spec.cpus_per_worker, missing * spec.gpus_per_worker
    if isinstance(spec, ServiceSpec):
        missing = (party.view.service.wanted if party.view.service else spec.replicas[0]) - party.num_held
        return missing * spec.stage.num_cpus, missing * spec.stage.num_gpus
    # A pipeline has started before its stages have their first replicas.
    if party.has_started and all(stage.replicas for stage in party.view.stages):
        return 0.0, 0.0
    cpus, gpus = (sum(slot[kind] for slot in spec.demand) - party.held[kind] for kind in (0, 1))
    return max(0.0, cpus), max(0.0, gpus)


def _needs(party: Party, lacks: Slots) -> Slots:
    """Give with how much more it could do something: a training with another replica, or with its least to start."""
    spec = party.spec
    if isinstance(spec, ServiceSpec):
        return spec.stage.num_cpus, spec.stage.num_gpus
    if isinstance(spec, TrainSpec) and party.is_elastic:
        count = spec.group * (1 if party.has_started else _asked(spec, party.view)[0] - party.num_held)
        return count * spec.cpus_per_worker, count * spec.gpus_per_worker
    return lacks


def lend(party: Party, loan: Loan | None, parties: Sequence[Party]) -> Lend | None:
    """Say what to command one of the runs that go on, if it was not told so before."""
    told = party.view.loan
    if loan is None:
        return None if told is None else Lend(run=party.view.name, borrower=told.borrower, max_workers=None)
    most = loan.most * party.spec.group if isinstance(party.spec, TrainSpec) else loan.most
    if told is not None and (told.borrower, told.max_workers) == (loan.borrower, most):
        return None
    borrower = next(each for each in parties if each.view.name == loan.borrower)
    return Lend(run=party.view.name, borrower=loan.borrower, max_workers=most, hands_on=are_of_use(party.slot, borrower.slot))


def are_of_use(given: Slot | None, wanted: Slot | None) -> bool:
    """Say whether slots of one run can be another's as they are: the same GPUs, with as many CPUs or more."""
    if given is None or wanted is None or given[1:] != wanted[1:]:
        return False
    return given[0] >= wanted[0] if given[1] else given[0] == wanted[0]


def _asked(spec: TrainSpec, view: RunView) -> tuple[int, int]:
    """Give how many replicas were asked last, least and most."""
    least, most = view.resized_to or spec.workers
    return least // spec.group, most // spec.group


def free_slots() -> Slots:
    """Give what Ray has to give now."""
    free = ray.available_resources()
    return free.get("CPU", 0.0), free.get("GPU", 0.0)


def whole_slots() -> Slots:
    """Give what the cluster has."""
    whole = ray.cluster_resources()
    return whole.get("CPU", 0.0), whole.get("GPU", 0.0)
