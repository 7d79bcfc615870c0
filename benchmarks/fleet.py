"""A fleet of 10,000 slots, simulated: services and trainings that share by raykit's policies, through an hour of real traces.

Nothing runs here but the policies themselves (``policy.lending``, ``policy.serving``): time passes in steps of a second.
100 services each need as many slots as requests of the Azure code-completion trace are worked on at a time, times four, each at
another offset; 900 elastic trainings ask for 1 to 24 slots. The capacity follows the Bamboo spot trace, compressed into the hour:
slots that go take those who are on them along. A slot is had one step after it was given back, and a training stands still for
``PAUSE_S`` when its world changes.

Beside it the same with a policy that acts once a minute, on the most that was needed in that minute. The fluid bound is all
capacity that no request needs.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from _measure import Figure, report
from _requests_trace import whole
from _spot_trace import shares

from raykit.policy.lending import Lender, Want, loans
from raykit.policy.serving import WARM, Patience, Steady

NUM_SLOTS, NUM_SERVICES, NUM_TRAININGS = 10_000, 100, 900
SECONDS, QUICK_S, STEP_S = 3600.0, 60.0, 1.0
TIMES = 4
PAUSE_S = 0.1
SLOW = Patience(hold_s=60.0, last_s=60.0)


@dataclass(slots=True, kw_only=True)
class Claimant:
    """A service or a training: what it asks for, and has."""

    run: str
    priority: int
    least: int
    wanted: int
    held: int = 0
    steady: Steady = field(default_factory=Steady)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Slot seconds by what became of them, and how often a training had to give a slot away."""

    trained: float
    bound: float
    needed: float
    missed: float
    num_given: int
    num_vanished: int
    decision_ms: list[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a minute of the traces: only whether it runs")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    for_s = QUICK_S if given.quick else SECONDS
    figures: dict[str, Figure] = {}
    for name, every_s, patience in (("raykit", STEP_S, WARM), ("once a minute", 60.0, SLOW)):
        outcome = simulated(for_s, every_s, patience, seed=given.seed)
        figures |= {
            f"harvest of the fluid bound, {name}": Figure(value=outcome.trained / outcome.bound),
            f"share of what requests needed that was not there, {name}": Figure(value=outcome.missed / outcome.needed),
            f"slots that trainings gave away, an hour, {name}": Figure(value=outcome.num_given * 3600 / for_s),
            f"slots that vanished under trainings, an hour, {name}": Figure(value=outcome.num_vanished * 3600 / for_s),
            f"a decision, median, ms, {name}": Figure(value=statistics.median(outcome.decision_ms)),
            f"a decision, worst, ms, {name}": Figure(value=max(outcome.decision_ms)),
        }
        print(f"{name}: {len(outcome.decision_ms)} decisions", flush=True)
    figures["a decision, median, ms, raykit"] = Figure(value=figures["a decision, median, ms, raykit"].value, goal="<= 10")
    report("fleet", {} if given.quick else figures)


def simulated(for_s: float, every_s: float, patience: Patience, *, seed: int) -> Outcome:
    """Let the time pass, with a decision each ``every_s``."""
    source = random.Random(seed)
    demand = demands()
    services = [Claimant(run=f"service-{number}", priority=2, least=0, wanted=0) for number in range(NUM_SERVICES)]
    trainings = [
        Claimant(run=f"training-{number}", priority=source.choice((0, 1)), least=1, wanted=source.randint(1, 24))
        for number in range(NUM_TRAININGS)
    ]
    trained = bound = needed = missed = 0.0
    num_given = num_vanished = 0
    decision_ms: list[float] = []
    capacity = shares(for_s, STEP_S)
    for step in range(int(for_s / STEP_S)):
        now_s, whole_slots = step * STEP_S, int(NUM_SLOTS * capacity[step])
        num_vanished += vanish([*trainings, *services], whole_slots, source)
        needs = [demand[(step + number * len(demand) // NUM_SERVICES) % len(demand)] for number in range(NUM_SERVICES)]
        before = [training.held for training in trainings]
        for service, need in zip(services, needs, strict=True):
            service.wanted = service.steady.take(now_s, need, patience)
        if step % int(every_s / STEP_S) == 0:
            free = whole_slots - sum(each.held for each in (*services, *trainings))
            begun_s = time.perf_counter()
            limits = decided(services, trainings, free)
            decision_ms.append(1000 * (time.perf_counter() - begun_s))
            num_given += carry_out(services, trainings, limits, free, source)
        changed = sum(training.held for training, held in zip(trainings, before, strict=True) if training.held != held)
        trained += STEP_S * sum(training.held for training in trainings) - PAUSE_S * changed
        bound += STEP_S * max(0, whole_slots - sum(needs))
        needed += STEP_S * sum(needs)
        missed += STEP_S * sum(max(0, need - service.held) for service, need in zip(services, needs, strict=True))
    return Outcome(
        trained=trained,
        bound=bound,
        needed=needed,
        missed=missed,
        num_given=num_given,
        num_vanished=num_vanished,
        decision_ms=decision_ms,
    )


def decided(services: Sequence[Claimant], trainings: Sequence[Claimant], free: int) -> dict[str, int]:
    """Give how many slots each training may have that is to give way."""
    lenders = [
        Lender(run=each.run, priority=each.priority, slot=(1.0, 1.0), num_held=each.held, least=min(each.least, each.held))
        for each in trainings
    ]
    wants = [
        Want(
            run=each.run,
            priority=each.priority,
            lacks=(float(lacks), float(lacks)),
            needs=(1.0, 1.0),
            held=(float(each.held), float(each.held)),
        )
        for each in (*services, *trainings)
        if (lacks := each.wanted - each.held) > 0
    ]
    return {run: loan.most for run, loan in loans(lenders, wants, (float(free), float(free))).items()}


def carry_out(
    services: Sequence[Claimant], trainings: Sequence[Claimant], limits: dict[str, int], free: int, source: random.Random
) -> int:
    """Give what is free, take what is not needed any more, and have trainings give what they are to, for the next time.

    Says how many slots trainings gave away.
    """
    num_given = 0
    for service in services:
        free += max(0, service.held - service.wanted)
        service.held = min(service.held, service.wanted)
    for service in services:
        more = min(free, service.wanted - service.held)
        service.held, free = service.held + more, free - more
    for training in sorted(trainings, key=lambda each: (-each.priority, source.random())):
        most = min(training.wanted, limits.get(training.run, training.wanted))
        if most < training.held:
            num_given += training.held - most
            training.held = most
        else:
            more = min(free, most - training.held)
            training.held, free = training.held + more, free - more
    return num_given


def vanish(claimants: Sequence[Claimant], whole_slots: int, source: random.Random) -> int:
    """Take the slots of nodes that went from those who are on them, and say how many trainings lost."""
    num_lost = 0
    while (over := sum(each.held for each in claimants) - whole_slots) > 0:
        for each in source.choices(claimants, weights=[each.held for each in claimants], k=over):
            if each.held:
                each.held -= 1
                num_lost += each.run.startswith("training")
    return num_lost


def demands() -> list[int]:
    """Give how many slots the requests of the whole trace would take, at each step."""
    requests = whole()
    counts = [0] * (int(requests[-1][0] / STEP_S) + 1)
    for at_s, takes_s in requests:
        for place in range(int(at_s / STEP_S), min(len(counts), int((at_s + takes_s) / STEP_S) + 1)):
            counts[place] += TIMES
    return counts


if __name__ == "__main__":
    main()
