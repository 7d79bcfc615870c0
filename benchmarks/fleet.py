"""A fleet of 10,000 slots, simulated: services and trainings that share by raykit's policies, through an hour of real traces.

Nothing runs here but the policies themselves (``_fleet.py``): time passes in steps of a second. 100 services each need as many
slots as requests of the Azure code-completion trace are worked on at a time, times four, each at another offset; 900 elastic
trainings ask for 1 to 24 slots. The capacity follows the Bamboo spot trace, compressed into the hour: slots that go take those
who are on them along.

Beside it the same with a policy that acts once a minute, on the most that was needed in that minute. The fluid bound is all
capacity that no request needs.

Then the same as ten teams with a cluster each. Half of the teams have 90 % of the services, the other half 90 % of the
trainings; each cluster has the quota of a tenth of the capacity, and raykit lends within it:
- quotas: each keeps its own;
- queues: once a minute a queue of the fleet divides the capacity as Kueue does with a cohort (``reclaimWithinCohort: Any``,
  ``borrowWithinCohort: LowerPriority``; re-implemented from its documentation): a cluster borrows what others leave of their
  quotas, and gives it back when they want it, or for the services of any. It wants what its trainings ask for, and what its
  services wanted at most in ten minutes. Pods that are taken are gone at
  once, and those that another cluster gets for them are there after 90 s; on nodes that come they are there at once, as above.
"""

from __future__ import annotations

import argparse
import statistics
from collections import deque
from collections.abc import Sequence

from _fleet import STEP_S, Claimant, Cluster, demands, need, services, trainings
from _measure import Figure, report
from _spot_trace import shares

from raykit.policy.serving import WARM, Patience

NUM_SLOTS, NUM_SERVICES, NUM_TRAININGS = 10_000, 100, 900
SECONDS, QUICK_S = 3600.0, 60.0
SLOW = Patience(hold_s=60.0, last_s=60.0)
NUM_TEAMS = 10
MAIN_SHARE = 0.9
QUEUE_S, WANTED_S, POD_S = 60.0, 600.0, 90.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a minute of the traces: only whether it runs")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    for_s, seed = QUICK_S if given.quick else SECONDS, given.seed
    sides = {
        "raykit": one_cluster(for_s, STEP_S, WARM, seed=seed),
        "once a minute": one_cluster(for_s, 60.0, SLOW, seed=seed),
        "ten clusters, quotas": ten_clusters(for_s, seed=seed, has_queue=False),
        "ten clusters, queues": ten_clusters(for_s, seed=seed, has_queue=True),
    }
    figures: dict[str, Figure] = {}
    for name, (bound, clusters) in sides.items():
        outcomes = [cluster.outcome for cluster in clusters]
        waits_s = [wait_s for cluster in clusters for service in cluster.services for wait_s in service.waits_s]
        needed = sum(each.needed for each in outcomes)
        decision_ms = [ms for each in outcomes for ms in each.decision_ms]
        an_hour = 3600 / for_s
        figures |= {
            f"harvest of the fluid bound, {name}": Figure(value=sum(each.trained for each in outcomes) / bound),
            f"share of what requests needed that was not there, {name}": Figure(
                value=sum(each.missed for each in outcomes) / needed
            ),
            f"times that a service had less than it needed, an hour, {name}": Figure(value=len(waits_s) * an_hour),
            f"how long, median, s, {name}": Figure(value=statistics.median(waits_s)),
            f"how long, worst, s, {name}": Figure(value=max(waits_s)),
            f"slots that trainings gave away, an hour, {name}": Figure(value=sum(each.num_given for each in outcomes) * an_hour),
            f"slots that vanished under trainings, an hour, {name}": Figure(
                value=sum(each.num_vanished for each in outcomes) * an_hour
            ),
            f"a decision, median, ms, {name}": Figure(value=statistics.median(decision_ms)),
            f"a decision, worst, ms, {name}": Figure(value=max(decision_ms)),
        }
        print(f"{name}: {len(decision_ms)} decisions", flush=True)
    figures["a decision, median, ms, raykit"] = Figure(value=figures["a decision, median, ms, raykit"].value, goal="<= 10")
    report("fleet", {} if given.quick else figures)


def one_cluster(for_s: float, every_s: float, patience: Patience, *, seed: int) -> tuple[float, list[Cluster]]:
    """Let the time pass over one cluster that has all slots, with a decision each ``every_s``; give the fluid bound, too."""
    demand, capacity, bound = demands(), shares(for_s, STEP_S), 0.0
    cluster = Cluster(services(NUM_SERVICES), trainings(NUM_TRAININGS, seed), patience, seed)
    for step, share in enumerate(capacity):
        num_slots = int(NUM_SLOTS * share)
        bound += STEP_S * max(0, num_slots - need(cluster.services, demand, step))
        cluster.step(step * STEP_S, num_slots, decides=step % int(every_s / STEP_S) == 0)
    return bound, [cluster]


def ten_clusters(for_s: float, *, seed: int, has_queue: bool) -> tuple[float, list[Cluster]]:
    """Let the time pass over ten clusters; give the fluid bound, too."""
    demand, capacity, bound = demands(), shares(for_s, STEP_S), 0.0
    all_services = services(NUM_SERVICES)
    teams = [
        Cluster(mine, theirs, WARM, seed + number)
        for number, (mine, theirs) in enumerate(
            zip(divided(all_services, first=MAIN_SHARE), divided(trainings(NUM_TRAININGS, seed), first=1 - MAIN_SHARE), strict=True)
        )
    ]
    queue = Queue(teams, int(NUM_SLOTS * capacity[0]))
    for step, share in enumerate(capacity):
        now_s, num_slots = step * STEP_S, int(NUM_SLOTS * share)
        bound += STEP_S * max(0, num_slots - need(all_services, demand, step))
        if has_queue:
            queue.look(now_s, num_slots)
        for number, team in enumerate(teams):
            mine = queue.there(number, now_s) if has_queue else num_slots // NUM_TEAMS
            team.step(now_s, mine, decides=True)
    return bound, teams


def divided(claimants: Sequence[Claimant], *, first: float) -> list[list[Claimant]]:
    """Give this share of them to the first half of the teams, and the rest to the others."""
    cut, half = round(first * len(claimants)), NUM_TEAMS // 2
    return [
        *(list(claimants[:cut][place::half]) for place in range(half)),
        *(list(claimants[cut:][place::half]) for place in range(half)),
    ]


class Queue:
    """Divides the capacity among the clusters of a cohort; what a cluster gains comes ``POD_S`` later."""

    def __init__(self, teams: Sequence[Cluster], num_slots: int) -> None:
        self._teams = teams
        self._given = [num_slots // len(teams)] * len(teams)
        self._there = list(self._given)
        self._coming: list[list[tuple[float, int]]] = [[] for _ in teams]
        self._wanted: list[deque[tuple[float, int]]] = [deque() for _ in teams]
        self._num_slots = num_slots

    def look(self, now_s: float, num_slots: int) -> None:
        """Take note of what the clusters want, and divide once a minute, and when the capacity has changed."""
        for team, wanted in zip(self._teams, self._wanted, strict=True):
            wanted.append((now_s, sum(service.wanted for service in team.services)))
            while wanted[0][0] < now_s - WANTED_S:
                wanted.popleft()
        if num_slots == self._num_slots and now_s % QUEUE_S:
            return
        new, self._num_slots = max(0, num_slots - self._num_slots), num_slots
        first = [max(count for _, count in wanted) for wanted in self._wanted]
        wants = [
            count + sum(training.wanted for training in team.trainings) for team, count in zip(self._teams, first, strict=True)
        ]
        for number, slots in enumerate(divided_anew(self._given, first, wants, num_slots)):
            more = slots - self._given[number]
            at_once = min(new, max(0, more))
            self._change(number, more - at_once, now_s)
            self._there[number] += at_once
            self._given[number], new = slots, new - at_once

    def there(self, number: int, now_s: float) -> int:
        """Give how many slots a cluster has now."""
        coming = self._coming[number]
        while coming and coming[0][0] <= now_s:
            self._there[number] += coming.pop(0)[1]
        assert sum(self._there) <= self._num_slots
        return self._there[number]

    def _change(self, number: int, more: int, now_s: float) -> None:
        if more > 0:
            self._coming[number].append((now_s + POD_S, more))
        while more < 0:  # first those that are not there yet
            coming = self._coming[number]
            at_s, count = coming.pop() if coming else (now_s, 0)
            taken = min(count, -more)
            if count > taken:
                coming.append((at_s, count - taken))
            more += taken
            if not coming:
                self._there[number] += more
                more = 0


def divided_anew(given: Sequence[int], first: Sequence[int], wants: Sequence[int], num_slots: int) -> list[int]:
    """Give each what its services want, then up to its quota, and share the rest among those who want more.

    Who has borrowed keeps it as long as nobody wants it to whom it belongs.
    """
    quota = num_slots // len(wants)
    belongs = [max(services, min(want, quota)) for services, want in zip(first, wants, strict=True)]
    slots = [min(have, want) for have, want in zip(given, wants, strict=True)]
    lacking = sum(max(0, its - have) for have, its in zip(slots, belongs, strict=True))
    for _ in range(max(0, sum(slots) + lacking - num_slots)):
        borrowed = [have - its for have, its in zip(slots, belongs, strict=True)]
        slots[borrowed.index(max(borrowed))] -= 1
    for most in (first, belongs, wants):
        left = num_slots - sum(slots)
        while left > 0 and (hungry := [number for number, have in enumerate(slots) if have < most[number]]):
            number = min(hungry, key=lambda each: slots[each])
            slots[number], left = slots[number] + 1, left - 1
    return slots


if __name__ == "__main__":
    main()
