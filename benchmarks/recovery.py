"""From the SIGKILL of a training worker or of its node to the next committed step: raykit beside its peers.

The next committed step is the first whose number was never committed before the kill, on whatever rank; its time is
that of the mark which the rank writes to disk after the optimizer's step. A run is back at full size with the first
such step that all four ranks commit. Sides take turns; each trial is kept in out/recovery.jsonl, and a benchmark that
was interrupted goes on with those that are missing (``--fresh`` begins again, ``--side NAME`` takes some of the sides).

One of four workers is killed:
- raykit with one warm spare;
- Ray Train with a fixed size at its defaults, with a checkpoint at each step or each ten; the same tuned as its
  settings allow (the controller looks each 0.2 s, torch is loaded before workers need it);
- Ray Train with torchft 0.2.0 (TorchftConfig), at settings that hold: a replica is dead after 1 s without a heartbeat,
  the others are waited for up to 60 s, an operation ends after 10 s (torchft's default is 60), and its hook for DDP is
  replaced by one that outlives a broken reduction. A survivor that is no neighbour of the dead one in gloo's ring may
  wait for the whole 10 s, so the times have two modes.

One of four nodes is killed, its raylet with all that it started (all nodes are on this machine, with one CPU slot each,
one worker on each, and it is never the head):
- raykit, with one warm spare;
- Ray Train with num_workers=(1, 4) at its defaults.

Each run of raykit in which workers are killed ends with a rank that is stopped (SIGSTOP), and a resize to two ranks and
back: a pause is the longest time between two steps' first commits, less the median step of the four ranks before.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import _recovery_peers as peers
from _marks import Trial
from _measure import Figure, end_in_order, report
from _recovery_raykit import WORKERS, node_lost, ranks_lost

RUNS = 5
KEPT = Path(__file__).parent.parent / "out" / "recovery.jsonl"

RAYKIT, RAYKIT_NODE = "raykit", "raykit, node lost"
FIXED, EACH_STEP, TUNED = "ray train", "ray train, checkpoint each step", "ray train, tuned"
ELASTIC_NODE, TORCHFT = "ray train elastic, node lost", "torchft"

SIDES: dict[str, Callable[[str], list[Trial]]] = {
    RAYKIT: ranks_lost,
    FIXED: partial(peers.ray_train, every=10, environment={}),
    EACH_STEP: partial(peers.ray_train, every=1, environment={}),
    TUNED: partial(peers.ray_train, every=10, environment=peers.TUNED),
    RAYKIT_NODE: node_lost,
    ELASTIC_NODE: peers.ray_train_elastic,
    TORCHFT: peers.ray_train_torchft,
}

RATIOS = [
    ("next commit", "next_commit_s", RAYKIT, FIXED, 1 / 50),
    ("next commit", "next_commit_s", RAYKIT, EACH_STEP, 1 / 50),
    ("next commit", "next_commit_s", RAYKIT, TUNED, 1 / 20),
    ("next commit", "next_commit_s", RAYKIT, TORCHFT, 1 / 3),
    ("back at full size", "full_size_s", RAYKIT, TORCHFT, 1 / 20),
    ("next commit", "next_commit_s", RAYKIT_NODE, ELASTIC_NODE, 1 / 20),
]


def main() -> None:
    end_in_order()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="one run of raykit with one kill, or of each --side: only whether it runs"
    )
    parser.add_argument("--runs", type=int, default=RUNS, metavar="N", help=f"of each side, those that were kept included ({RUNS})")
    parser.add_argument("--fresh", action="store_true", help="forget the trials of earlier runs")
    parser.add_argument("--model", choices=("mlp", "cnn"), default="mlp")
    parser.add_argument(
        "--side", choices=SIDES, action="append", metavar="NAME", help=f"one of: {'; '.join(SIDES)}; may be repeated"
    )
    arguments = parser.parse_args()
    kind, sides = arguments.model, list(arguments.side or ([RAYKIT] if arguments.quick else SIDES))
    if TORCHFT in sides and not peers.torchft_is_there():
        print(peers.TORCHFT_MISSING)
        sides.remove(TORCHFT)
    if arguments.quick:
        for side in sides:
            print(side, *(ranks_lost(kind, num_kills=1) if side == RAYKIT else SIDES[side](kind)), sep="\n")
        report("recovery", {})
    if arguments.fresh:
        KEPT.unlink(missing_ok=True)
    for number in range(arguments.runs):
        for side in sides:
            if len({trial["run"] for trial in kept(kind, side)}) <= number:
                keep(kind, side, number, SIDES[side](kind))
    report(f"recovery, {kind}", figures(kind))


def figures(kind: str) -> dict[str, Figure]:
    """Compare the medians of all that was kept, and name what was not measured; all values are printed."""
    found: dict[str, Figure] = {}
    for side in SIDES:
        for what in ("next_commit_s", "full_size_s"):
            if times := values(kind, side, "kill", what):
                name = what.removesuffix("_s").replace("_", " ")
                every = [round(each, 2) for each in times]
                print(f"{kind}, {side}, {name}: median {statistics.median(times):.3f} s, worst {max(times):.3f} s, all {every}")
    for name, what, ours, theirs, goal in RATIOS:
        one, other = values(kind, ours, "kill", what), values(kind, theirs, "kill", what)
        if one and other:
            ratio = statistics.median(one) / statistics.median(other)
            found[f"{name}, {ours} / {theirs}"] = Figure(value=ratio, goal=f"<= {goal:.4g}")
        else:
            print(f"not measured: {name}, {ours} / {theirs}")
    if times := values(kind, TORCHFT, "kill", "next_commit_s"):
        found["next commit, torchft, fastest, s"] = Figure(value=min(times))
    for side in (RAYKIT, RAYKIT_NODE):
        if times := values(kind, side, "kill", "next_commit_s"):
            found[f"next commit, {side}, s"] = Figure(value=statistics.median(times))
            lost = sum(values(kind, side, "kill", "steps_lost"))
            found[f"committed steps lost, {side}, all kills"] = Figure(value=lost, goal="<= 0")
    return found | figures_of_raykit(kind)


def figures_of_raykit(kind: str) -> dict[str, Figure]:
    """Judge what has no peer: a stopped rank and a resize."""
    found = {}
    if stops := values(kind, RAYKIT, "stop", "next_commit_s"):
        print(f"{kind}, raykit, SIGSTOP: {[round(each, 2) for each in stops]} s to the next commit")
        late = [stop - limit for stop, limit in zip(stops, values(kind, RAYKIT, "stop", "limit_s"), strict=True)]
        found["stopped rank, next commit after max(5 steps, 1 s) + 1 s, worst, s"] = Figure(value=max(late), goal="<= 0")
    for what in ("resize to 2", f"resize to {WORKERS}"):
        if pauses := values(kind, RAYKIT, what, "pause_s"):
            print(f"{kind}, raykit, {what}: pauses {[round(each, 2) for each in pauses]} s")
            found[f"pause beyond a step, {what}, worst, s"] = Figure(value=max(pauses), goal="<= 0.2")
    return found


def values(kind: str, side: str, what: str, key: str) -> list[float]:
    """Give one number of each of a side's trials of one sort that has it."""
    return [trial[key] for trial in kept(kind, side) if trial["what"] == what and key in trial]


def kept(kind: str, side: str) -> list[Trial]:
    """Give the trials of a side that were kept."""
    lines = KEPT.read_text().splitlines() if KEPT.exists() else []
    trials: list[Trial] = [json.loads(line) for line in lines]
    return [trial for trial in trials if (trial["model"], trial["side"]) == (kind, side)]


def keep(kind: str, side: str, number: int, trials: list[Trial]) -> None:
    KEPT.parent.mkdir(exist_ok=True)
    with KEPT.open("a") as file:
        for trial in trials:
            print(f"{kind}, run {number + 1}: {side} {trial}", flush=True)
            file.write(json.dumps({"model": kind, "side": side, "run": number} | trial) + "\n")


if __name__ == "__main__":
    main()
