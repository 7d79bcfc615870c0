"""Pipelines on their integer bound: how near raykit comes to it, and how soon, beside Ray Data and cosmos-xenna.

All is emulated: a stage sleeps as long as its rows cost, in a cluster of 12 CPU slots on whatever machine this is.

Rates: random pipelines of 2 to 5 stages, batch costs of 50 ms to 5 s (log-uniform), batches of 4, 8 or 16 rows, stages
that give one row, two or a half for each, and up to 12 replicas. The bound is the best of all ways to share 12 replicas:
the greedy rule's, checked against every way. A rate is the slope of the least-squares line through the rows that have
left the last stage over time, from when 12 replicas have started and the batches of one passage through all stages are
over until the source is dry: 30 s or 8 of the slowest batches. What is moved later counts against raykit. An even split
has 12 // stages replicas of each; its rate is computed, and for the first few pipelines measured as well.

Reaction: pipelines of short batches (50 to 500 ms), whose quickest stage then becomes ten times slower. From when each
stage has a replica, or from when the stage is slowed, to the begin of the first window of max(10 s, 6 of the slowest
batches) in which every stage moves 95 % of the bound. Each side in a cluster of its own, in turn:
- raykit;
- Ray Data with RAY_DATA_ACTOR_AUTOSCALER=DEFAULT, and with BACKLOG_AWARE, which is its default;
- cosmos-xenna 0.3.0 at its defaults (it looks each 180 s).
What was not reached counts with the time for which it was watched (Ray Data 120 s, xenna 240 s), so those ratios are
upper bounds. The floor, from the same run: from raykit's decision until the last replica has started, and five of the
slowest batches.

Each trial is kept in out/balance.jsonl, and a benchmark that was interrupted goes on (``--fresh`` begins again).
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import _balance_peers as peers
from _balance_pipelines import Shape, changing_pipelines, random_pipelines
from _balance_raykit import cluster, reaction, steady
from _marks import Trial
from _measure import Figure, end_in_order, report

PIPELINES = 30
PEERS = 3
EVEN_MEASURED = 3
TWICE = 2 / 0.95  # where the bound is so much above an even split, 0.95 of it is twice as fast
KEPT = Path(__file__).parent.parent / "out" / "balance.jsonl"

STEADY, EVEN = "steady", "even split"
RAYKIT, DEFAULT, BACKLOG, XENNA = "raykit", "ray data, DEFAULT", "ray data, BACKLOG_AWARE", "cosmos-xenna"


def raykit_reaction(shape: Shape) -> Trial:
    with cluster():
        return reaction(shape)


SIDES: dict[str, Callable[[Shape], Trial]] = {
    RAYKIT: raykit_reaction,
    DEFAULT: partial(peers.ray_data, autoscaler="DEFAULT"),
    BACKLOG: partial(peers.ray_data, autoscaler="BACKLOG_AWARE"),
    XENNA: peers.cosmos_xenna,
}
GOALS = {DEFAULT: "<= 0.3333", BACKLOG: "<= 1", XENNA: "<= 0.1"}


def main() -> None:
    end_in_order()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one pipeline, no peer: only whether it runs")
    parser.add_argument("--pipelines", type=int, default=PIPELINES, metavar="N", help=f"whose rates are measured ({PIPELINES})")
    parser.add_argument("--peers", type=int, default=PEERS, metavar="N", help=f"pipelines of which the reaction is ({PEERS})")
    parser.add_argument("--side", choices=SIDES, action="append", metavar="NAME", help=f"of the reaction: {'; '.join(SIDES)}")
    parser.add_argument("--seed", type=int, default=0, help="of the pipelines")
    parser.add_argument("--fresh", action="store_true", help="forget the trials of earlier runs")
    arguments = parser.parse_args()
    seed, sides = arguments.seed, list(arguments.side or SIDES)
    if arguments.quick:
        with cluster():
            print(steady(next(random_pipelines(seed))))
        report("balance", {})
    if XENNA in sides and not peers.xenna_is_there():
        print(peers.XENNA_MISSING)
        sides.remove(XENNA)
    if arguments.fresh:
        KEPT.unlink(missing_ok=True)
    measure_rates(seed, arguments.pipelines)
    for number, shape in enumerate(islice(changing_pipelines(seed), arguments.peers)):
        for side in sides if number % 2 == 0 else reversed(sides):
            if not kept(seed, side, number):
                keep(seed, side, number, SIDES[side](shape))
    report("balance", figures(seed))


def measure_rates(seed: int, count: int) -> None:
    """Measure those pipelines that are missing, all in one cluster."""
    shapes = list(islice(random_pipelines(seed), count))
    trials = [(STEADY, shape) for shape in shapes] + [(EVEN, shape) for shape in shapes[:EVEN_MEASURED]]
    missing = [(what, shape) for what, shape in trials if not kept(seed, what, shape.number)]
    if not missing:
        return
    with cluster():
        for what, shape in missing:
            keep(seed, what, shape.number, steady(shape, even=what == EVEN))


def figures(seed: int) -> dict[str, Figure]:
    """Judge all that was kept, and name what was not measured."""
    found: dict[str, Figure] = {}
    rates = kept(seed, STEADY)
    if rates:
        ratios = [trial["ratio"] for trial in rates]
        print(f"rate over the bound, {len(ratios)} pipelines: {[round(each, 3) for each in sorted(ratios)]}")
        found["rate over the bound, median"] = Figure(value=statistics.median(ratios), goal=">= 0.95")
        found["rate over the bound, worst"] = Figure(value=min(ratios), goal=">= 0.9")
        found["pipelines measured"] = Figure(value=len(ratios))
        twice = [trial for trial in rates if trial["bound"] >= TWICE * trial["even_bound"]]
        if twice:
            gains = [trial["ratio"] * trial["bound"] / trial["even_bound"] for trial in twice]
            print(f"rate over an even split's, where the bound allows 2: {[round(each, 2) for each in sorted(gains)]}")
            found["rate over an even split's, where the bound allows 2, worst"] = Figure(value=min(gains), goal=">= 2")
    if evens := [trial["ratio"] for trial in kept(seed, EVEN)]:
        found["even split, measured over computed, median"] = Figure(value=statistics.median(evens))
    for what, name in (("start", "from the start"), ("slowed", "after a stage slows tenfold")):
        found |= reactions(seed, what, name)
    return found


def reactions(seed: int, what: str, name: str) -> dict[str, Figure]:
    """Compare the times to 95 % of the bound: medians of the ratios of the pipelines that both sides had, and the worst."""
    found: dict[str, Figure] = {}
    ours = {trial["pipeline"]: trial for trial in kept(seed, RAYKIT)}
    for side in SIDES:
        if trials := kept(seed, side):
            times = [f"{trial[f'{what}_s']:.1f}{'' if trial[f'{what}_reached'] else ' (not reached)'}" for trial in trials]
            print(f"{name}, {side}: {', '.join(times)} s")
            found[f"95 % of the bound {name}, {side}, median, s"] = Figure(
                value=statistics.median(trial[f"{what}_s"] for trial in trials)
            )
    for side, goal in GOALS.items():
        both = [(ours[trial["pipeline"]], trial) for trial in kept(seed, side) if trial["pipeline"] in ours]
        ratios = [one[f"{what}_s"] / max(other[f"{what}_s"], 1e-3) for one, other in both]
        if ratios:
            found[f"{name}, raykit / {side}, median"] = Figure(value=statistics.median(ratios), goal=goal)
            # Never slower than the default is a word about each pipeline.
            found[f"{name}, raykit / {side}, worst"] = Figure(value=max(ratios), goal=goal if side == BACKLOG else None)
        else:
            print(f"not measured: {name}, raykit / {side}")
    floors = [trial[f"{what}_s"] / trial[f"{what}_floor_s"] for trial in ours.values() if f"{what}_floor_s" in trial]
    if floors:
        print(f"{name}, raykit over the floor: {[round(each, 2) for each in floors]}")
        found[f"{name}, raykit over the floor, median"] = Figure(value=statistics.median(floors), goal="<= 1.2")
        found[f"{name}, raykit over the floor, worst"] = Figure(value=max(floors))
    return found


def kept(seed: int, what: str, pipeline: int | None = None) -> list[Trial]:
    """Give the trials of one sort that were kept."""
    lines = KEPT.read_text().splitlines() if KEPT.exists() else []
    trials: list[Trial] = [json.loads(line) for line in lines]
    return [trial for trial in trials if (trial["seed"], trial["what"]) == (seed, what) and pipeline in {None, trial["pipeline"]}]


def keep(seed: int, what: str, pipeline: int, trial: Trial) -> None:
    print(f"pipeline {pipeline}: {what} {trial}", flush=True)
    KEPT.parent.mkdir(exist_ok=True)
    with KEPT.open("a") as file:
        file.write(json.dumps({"seed": seed, "what": what, "pipeline": pipeline} | trial) + "\n")


if __name__ == "__main__":
    main()
