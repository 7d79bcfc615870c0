"""A cluster of many slots, simulated: services and elastic trainings that share by raykit's policies, second by second.

Nothing runs here but the policies themselves (``policy.lending``, ``policy.serving``). A slot is had one step after it was given
back, and a training stands still for ``PAUSE_S`` when its world changes.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from _requests_trace import whole

from raykit.policy.lending import Lender, Want, loans
from raykit.policy.serving import Patience, Steady

STEP_S = 1.0
TIMES = 4
PAUSE_S = 0.1


@dataclass(slots=True, kw_only=True)
class Claimant:
    """A service or a training: what it asks for, and has; ``waits_s`` is how long it had less than it needed, each time."""

    run: str
    priority: int
    least: int
    wanted: int
    held: int = 0
    need: int = 0
    steady: Steady = field(default_factory=Steady)
    lacks: bool = False
    waits_s: list[float] = field(default_factory=list)

    def pass_time(self) -> None:
        """Count ``STEP_S`` as waited if it has less than it needs."""
        lacked, self.lacks = self.lacks, self.need > self.held
        if self.lacks and lacked:
            self.waits_s[-1] += STEP_S
        elif self.lacks:
            self.waits_s.append(STEP_S)


@dataclass(slots=True, kw_only=True)
class Outcome:
    """Slot seconds by what became of them, and how often a training had to give a slot away, or lost one."""

    trained: float = 0.0
    needed: float = 0.0
    missed: float = 0.0
    num_given: int = 0
    num_vanished: int = 0
    decision_ms: list[float] = field(default_factory=list)


class Cluster:
    """Claimants on slots of one cluster; ``outcome`` is what became of them so far."""

    def __init__(self, services: Sequence[Claimant], trainings: Sequence[Claimant], patience: Patience, seed: int) -> None:
        self.services, self.trainings, self.outcome = services, trainings, Outcome()
        self._patience, self._source = patience, random.Random(seed)

    @property
    def num_held(self) -> int:
        return sum(each.held for each in (*self.services, *self.trainings))

    def step(self, now_s: float, num_slots: int, *, decides: bool) -> None:
        """Let ``STEP_S`` pass with so many slots; services need what stands in their ``need``."""
        told = self.outcome
        told.num_vanished += self._vanish(num_slots)
        before = [training.held for training in self.trainings]
        for service in self.services:
            service.wanted = service.steady.take(now_s, service.need, self._patience)
        if decides:
            free = num_slots - self.num_held
            begun_s = time.perf_counter()
            limits = self._decided(free)
            told.decision_ms.append(1000 * (time.perf_counter() - begun_s))
            told.num_given += self._carry_out(limits, free)
        changed = sum(training.held for training, held in zip(self.trainings, before, strict=True) if training.held != held)
        told.trained += STEP_S * sum(training.held for training in self.trainings) - PAUSE_S * changed
        told.needed += STEP_S * sum(service.need for service in self.services)
        told.missed += STEP_S * sum(max(0, service.need - service.held) for service in self.services)
        for service in self.services:
            service.pass_time()

    def _decided(self, free: int) -> dict[str, int]:
        """Give how many slots each training may have that is to give way."""
        lenders = [
            Lender(run=each.run, priority=each.priority, slot=(1.0, 1.0), num_held=each.held, least=min(each.least, each.held))
            for each in self.trainings
        ]
        wants = [
            Want(
                run=each.run,
                priority=each.priority,
                lacks=(float(lacks), float(lacks)),
                needs=(1.0, 1.0),
                held=(float(each.held), float(each.held)),
            )
            for each in (*self.services, *self.trainings)
            if (lacks := each.wanted - each.held) > 0
        ]
        return {run: loan.most for run, loan in loans(lenders, wants, (float(free), float(free))).items()}

    def _carry_out(self, limits: dict[str, int], free: int) -> int:
        """Give what is free, take what is not needed any more, and have trainings give what they are to, for the next time.

        Says how many slots trainings gave away.
        """
        num_given = 0
        for service in self.services:
            free += max(0, service.held - service.wanted)
            service.held = min(service.held, service.wanted)
        for service in self.services:
            more = min(free, service.wanted - service.held)
            service.held, free = service.held + more, free - more
        for training in sorted(self.trainings, key=lambda each: (-each.priority, self._source.random())):
            most = min(training.wanted, limits.get(training.run, training.wanted))
            if most < training.held:
                num_given += training.held - most
                training.held = most
            else:
                more = min(free, most - training.held)
                training.held, free = training.held + more, free - more
        return num_given

    def _vanish(self, num_slots: int) -> int:
        """Take the slots that went from those who are on them, and say how many trainings lost."""
        num_lost = 0
        claimants = [*self.trainings, *self.services]
        while (over := sum(each.held for each in claimants) - num_slots) > 0:
            for each in self._source.choices(claimants, weights=[each.held for each in claimants], k=over):
                if each.held:
                    each.held -= 1
                    num_lost += each.run.startswith("training")
        return num_lost


def services(count: int) -> list[Claimant]:
    """Make services, of a high priority."""
    return [Claimant(run=f"service-{number}", priority=2, least=0, wanted=0) for number in range(count)]


def trainings(count: int, seed: int) -> list[Claimant]:
    """Make trainings of a low or the normal priority that ask for 1 to 24 slots."""
    source = random.Random(seed)
    return [
        Claimant(run=f"training-{number}", priority=source.choice((0, 1)), least=1, wanted=source.randint(1, 24))
        for number in range(count)
    ]


def demands() -> list[int]:
    """Give how many slots the requests of the whole code-completion trace would take, times ``TIMES``, at each step."""
    requests = whole()
    counts = [0] * (int(requests[-1][0] / STEP_S) + 1)
    for at_s, takes_s in requests:
        for place in range(int(at_s / STEP_S), min(len(counts), int((at_s + takes_s) / STEP_S) + 1)):
            counts[place] += TIMES
    return counts


def need(services: Sequence[Claimant], demand: Sequence[int], step: int) -> int:
    """Set what each service needs, each at another offset of the trace, and give the sum."""
    for number, service in enumerate(services):
        service.need = demand[(step + number * len(demand) // len(services)) % len(demand)]
    return sum(service.need for service in services)
