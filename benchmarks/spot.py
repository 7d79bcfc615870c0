"""Goodput of elastic training on a real spot-instance trace (Bamboo, p3): every change is made to a live raykit run.

What is scaled: the trace's 10 to 32 nodes become 2 to 8 workers (nodes x 8 / 32, rounded down, and each change moves at
least one worker); its 11.4 h become minutes: a change comes as soon as the world has the size that the one before asked
for, a spare is warm and five more steps are committed, while the trace's changes are 60 s to 53 min apart. Of the 163
changes the first starts the run, and 14 bring nodes to a world that has its 8 workers already.

A change that brings nodes is a ``resize`` up. One that takes nodes is a SIGKILL of as many ranks at once, random ones,
as the world loses workers, and then a ``resize`` down, as spot instances vanish without a word. At two workers the
killed one's place is taken by the spare.

A change's pause is the time without a commit beyond the median step: of all gaps between two steps' first commits, from
the change to the next one, that are longer than twice the median step of a world of that size, what is beyond one.
Goodput is 1 - (sum of the pauses) / (the trace's own 11.4 h); a change without effect counts with the mean pause of
those that bring nodes. The bound has one step redone for each change, and no other loss.

On two cores 8 workers share the CPU, and a worker that starts takes it from those that train: steps are slow for that
reason, and pauses long, which says nothing about a machine for each worker.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import time
from dataclasses import dataclass
from itertools import pairwise

import psutil
from _marks import Marks, first_commits, steps_lost, until
from _measure import Figure, end_in_order, report
from _recovery_raykit import training, whole
from _spot_trace import MOST_WORKERS, Change, changes

import raykit as rk

STEPS_BETWEEN = 5
QUICK_CHANGES = 11  # the last of them is the first that takes nodes
LOOK_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A change and when it was made."""

    change: Change
    begun_s: float


def main() -> None:
    end_in_order()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"the first {QUICK_CHANGES} changes: only whether it runs")
    parser.add_argument("--changes", type=int, metavar="N", help="the first N changes after the start")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of the ranks that are killed")
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    first, *following = changes()
    chosen = following[: QUICK_CHANGES if arguments.quick else arguments.changes]
    print(f"{MOST_WORKERS} workers at most share {psutil.cpu_count()} cores: steps are slow, and pauses long, for that reason.")
    print("scaled: 10 to 32 nodes are 2 to 8 workers; 11.4 h of changes are made one after the other")
    begun_s = time.monotonic()
    with training("mlp", first.after, num_cpus=MOST_WORKERS) as (run, marks):
        settle(run, marks, first.after)
        made = [make(run, marks, change) for change in chosen if change.has_effect]
        end_s = time.time()
    took_s = time.monotonic() - begun_s
    pauses = pauses_s(marks, made, end_s)
    print(f"{len(made)} changes made of {len(chosen)}, in {took_s:.0f} s; the others have no effect on {MOST_WORKERS} workers")
    report("spot", {} if arguments.quick else figures(marks, made, pauses, chosen, whole_trace=len(chosen) == len(following)))


def make(run: rk.Run, marks: Marks, change: Change) -> Made:
    """Make a change, and wait until the world is whole again."""
    ranks = [rank.pid for rank in run.refresh().ranks if rank.rank is not None and not rank.lost]
    victims = random.sample(ranks, change.kills)
    begun_s = time.time()
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    if change.after != change.before:
        run.resize((1, change.after))
    until(lambda: not living(run, victims), look_s=LOOK_S)
    try:
        settle(run, marks, change.after)
    except TimeoutError as exc:
        exc.add_note(f"The change was {change}. The run: {run.view!r}")
        raise
    print(f"{change.at_s:6.0f} s of the trace: {change.before} to {change.after}, {change.kills} killed", flush=True)
    return Made(change=change, begun_s=begun_s)


def living(run: rk.Run, pids: list[int]) -> list[int]:
    """Give those of the processes that the run does not know to be lost."""
    return [rank.pid for rank in run.refresh().ranks if rank.pid in pids and not rank.lost]


def settle(run: rk.Run, marks: Marks, workers: int) -> None:
    """Wait until so many ranks train, a spare is warm, and some steps are committed since."""
    until(lambda: whole(run.refresh(), workers), look_s=LOOK_S)
    seen = marks.read()[-1].step
    until(lambda: marks.read()[-1].step >= seen + STEPS_BETWEEN, look_s=LOOK_S)


def pauses_s(marks: Marks, made: list[Made], end_s: float) -> list[float]:
    """Give each change's pause."""
    medians = medians_s(marks)
    worlds = list(world_sizes(marks).values())
    gaps = [
        (after, after - before, medians[world])
        for (before, after), world in zip(pairwise(first_commits(marks, 0)), worlds[1:], strict=True)
    ]
    windows = pairwise([*(each.begun_s for each in made), end_s])
    return [sum(gap - step for at_s, gap, step in gaps if begun < at_s <= end and gap > 2 * step) for begun, end in windows]


def world_sizes(marks: Marks) -> dict[int, int]:
    """Give the number of processes that committed each step."""
    pids: dict[int, set[int]] = {}
    for mark in marks.read():
        pids.setdefault(mark.step, set()).add(mark.pid)
    return {step: len(of_step) for step, of_step in pids.items()}


def medians_s(marks: Marks) -> dict[int, float]:
    """Give the median step of each size of the world."""
    gaps: dict[int, list[float]] = {}
    worlds = list(world_sizes(marks).values())
    for (before, after), world in zip(pairwise(first_commits(marks, 0)), worlds[1:], strict=True):
        gaps.setdefault(world, []).append(after - before)
    return {world: statistics.median(of_world) for world, of_world in gaps.items()}


def figures(marks: Marks, made: list[Made], pauses: list[float], chosen: list[Change], *, whole_trace: bool) -> dict[str, Figure]:
    """Judge the pauses over the trace's own time; of a part of the trace only beside the others."""
    medians = medians_s(marks)
    trace_s = chosen[-1].at_s
    growths = [pause for pause, each in zip(pauses, made, strict=True) if not each.change.kills]
    losses = [pause for pause, each in zip(pauses, made, strict=True) if each.change.kills]
    without = (len(chosen) - len(made)) * statistics.mean(growths)
    bound_s = sum(medians.get(each.change.before, max(medians.values())) for each in made)
    for name, some in (("nodes that come", growths), ("nodes that vanish", losses)):
        print(f"{name}: {len(some)} changes, pause median {statistics.median(some):.2f} s, worst {max(some):.2f} s")
    print(f"median step by world size: { {world: round(step, 3) for world, step in sorted(medians.items())} } s")
    return {
        "goodput on the trace's own time": Figure(
            value=1 - (sum(pauses) + without) / trace_s, goal=">= 0.99" if whole_trace else None
        ),
        "committed steps lost, all changes": Figure(value=steps_lost(marks), goal="<= 0"),
        "changes made": Figure(value=len(made)),
        "changes without effect on 8 workers": Figure(value=len(chosen) - len(made)),
        "pause, median, s": Figure(value=statistics.median(pauses)),
        "pause, 95th percentile, s": Figure(value=statistics.quantiles(pauses, n=20, method="inclusive")[-1]),
        "pause, worst, s": Figure(value=max(pauses)),
        "bound: goodput with one step redone at each change": Figure(value=1 - bound_s / trace_s),
    }


if __name__ == "__main__":
    main()
