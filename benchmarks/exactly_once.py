"""Exactly once under fire: pipelines of 10,000 rows while replicas, nodes and the host are killed at random.

Each run is the three stages of ``_fire.py`` on a cluster of three nodes of one CPU. Three to six kills are drawn from the
seed: of a replica, of the run's host, or of a node that is not the head's, up to three seconds apart and some at once.
A run is judged by the values of its rows: each pair (source row, ordinal) that the rows must become is once in the sink or
in quarantine, with the right square and sum. A run that is not done in time counts as well.

Verdicts are kept in out/exactly_once.jsonl, one a line: a benchmark that is called again goes on after them. Move that
file away to begin anew, as when raykit has changed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from _fire import Verdict, stand, under_fire
from _measure import Figure, end_in_order, report

import raykit as rk

CLUSTER = "bench"
ROWS, QUICK_ROWS, QUICK_RUNS = 10_000, 2_000, 2
KEPT = Path(__file__).resolve().parent.parent / "out" / "exactly_once.jsonl"


def main() -> None:
    end_in_order()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_RUNS} runs of {QUICK_ROWS:,} rows, kept nowhere")
    parser.add_argument("--runs", type=int, default=100, metavar="N", help="how many in all, those that are kept included (100)")
    parser.add_argument("--seed", type=int, default=0, help="of the kills (0)")
    arguments = parser.parse_args()
    verdicts = {} if arguments.quick else kept(arguments.seed)
    wanted = QUICK_RUNS if arguments.quick else arguments.runs
    with tempfile.TemporaryDirectory(prefix="rk-") as folder:
        os.environ["RAYKIT_HOME"] = f"{folder}/home"
        try:
            for number in range(wanted):
                if number in verdicts:
                    continue
                stand(CLUSTER)
                verdict = under_fire(f"fire-{number}", QUICK_ROWS if arguments.quick else ROWS, f"{arguments.seed}/{number}")
                verdicts[number] = verdict
                print(f"run {number + 1} of {wanted}: {'holds' if verdict.holds else 'BROKEN'}: {verdict}", flush=True)
                if not arguments.quick:
                    keep(arguments.seed, number, verdict)
                if verdict.state == "hung":
                    rk.down(CLUSTER)
        finally:
            rk.down(CLUSTER)
    report("exactly_once", figures(list(verdicts.values())))


def kept(seed: int) -> dict[int, Verdict]:
    """Give the verdicts of earlier calls by the number of their run."""
    lines = KEPT.read_text().splitlines() if KEPT.exists() else []
    found = [json.loads(line) for line in lines]
    return {each["run"]: Verdict(**each["verdict"]) for each in found if each["seed"] == seed}


def keep(seed: int, number: int, verdict: Verdict) -> None:
    KEPT.parent.mkdir(exist_ok=True)
    with KEPT.open("a") as file:
        file.write(json.dumps({"seed": seed, "run": number, "verdict": asdict(verdict)}) + "\n")


def figures(verdicts: list[Verdict]) -> dict[str, Figure]:
    """Add up the verdicts."""
    kills: Counter[str] = Counter()
    for verdict in verdicts:
        kills.update(verdict.kills)
    return {
        "rows lost": Figure(value=sum(each.lost for each in verdicts), goal="== 0"),
        "rows doubled": Figure(value=sum(each.doubled for each in verdicts), goal="== 0"),
        "rows of a wrong value or in the wrong place": Figure(value=sum(each.wrong for each in verdicts), goal="== 0"),
        "runs that failed or hung": Figure(value=sum(each.state != "done" for each in verdicts), goal="== 0"),
        "runs": Figure(value=len(verdicts)),
        "rows put aside since their replica was killed twice at them": Figure(value=sum(each.accused for each in verdicts)),
        **{f"kills, {kind}": Figure(value=count) for kind, count in sorted(kills.items())},
        "a run, median, s": Figure(value=statistics.median(each.took_s for each in verdicts)),
        "a run, worst, s": Figure(value=max(each.took_s for each in verdicts)),
    }


if __name__ == "__main__":
    main()
