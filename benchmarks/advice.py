"""Whether the advice on a pipeline is right, and gives what it says: faults drawn at random, which the policy is not told.

The faults stand in _advice_faults.py; all but the crowded threads are emulated by sleep. Each runs in a cluster of its own
until an advice has stood for 12 s, so that no trial falls into the window before. It is right when it names the fault's
stage and remedy, or the source. Then it is carried out while the run goes on (``run.apply()``), or, where only a person
could do it, the same pipeline runs again without the fault. Rates before and after are those of rows that left the last
stage, by the least-squares line over 10 s; the gain is their ratio, and holds when it is within 25 % of the one that was said.

Each trial is kept in out/advice.jsonl, and a benchmark that was interrupted goes on (``--fresh`` begins again).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from _advice_faults import Fault, draw
from _marks import until
from _measure import Figure, end_in_order, report

import raykit as rk
from raykit.events import AdviceMeasured, StageSampled

FAULTS = 20
WINDOW_S = 10.0
STANDS_S = WINDOW_S + 2
NEAR = 0.25
KEPT = Path(__file__).parent.parent / "out" / "advice.jsonl"


def main() -> None:
    end_in_order()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one fault: only whether it runs")
    parser.add_argument("--faults", type=int, default=FAULTS, metavar="N", help=f"how many ({FAULTS})")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument("--fresh", action="store_true", help="forget the trials of earlier runs")
    arguments = parser.parse_args()
    if arguments.fresh:
        KEPT.unlink(missing_ok=True)
    known = kept(arguments.seed)
    for number, fault in enumerate(draw(arguments.seed, 1 if arguments.quick else arguments.faults)):
        if arguments.quick or number not in known:
            trial = judge(fault)
            print(f"{number}: {fault.kind}: {trial}", flush=True)
            if not arguments.quick:
                keep(arguments.seed, number, trial)
    report("advice", {} if arguments.quick else figures(list(kept(arguments.seed).values())))


def judge(fault: Fault) -> dict[str, Any]:
    """Run a pipeline with a fault until it is advised on, have that done, and compare."""
    with cluster(fault):
        run = start(fault.stages, fault.source)
        try:
            advice = standing(run)
            right = is_right(fault, advice)
            before = rate(run, time.time())
            after = applied(run) if advice is not None and advice.changes else None
        finally:
            run.stop()
            until(lambda: run.refresh().ended)
        if advice is not None and after is None and right and fault.mended:
            after = mended(fault)
    said = (
        "nothing"
        if advice is None
        else f"{[change.fields | {'stage': change.stage} for change in advice.changes]}, {advice.reason}"
    )
    trial: dict[str, Any] = {"kind": fault.kind, "right": right, "said": said}
    if advice is not None and after is not None:
        expected, measured = advice.expected_rows_s / advice.rows_s, after / before
        trial |= {"expected": expected, "measured": measured, "near": abs(measured / expected - 1) <= NEAR}
    return trial


@contextmanager
def cluster(fault: Fault) -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="rk-") as folder:
        os.environ["RAYKIT_HOME"] = f"{folder}/home"
        rk.up("bench", object_store_bytes=100_000_000, **fault.cluster)
        try:
            yield
        finally:
            rk.down("bench")


def start(stages: tuple[Callable[..., Any], ...], source: Callable[[], Any]) -> rk.Run:
    return rk.Pipeline(stages).run(source, name="fault")


def standing(run: rk.Run) -> Any:
    """Give the advice that has not changed for some seconds."""
    seen, since_s = None, time.time()

    def stands() -> bool:
        nonlocal seen, since_s
        advice = run.refresh().advice
        if advice != seen:
            seen, since_s = advice, time.time()
        return seen is not None and time.time() - since_s > STANDS_S

    until(stands, look_s=0.2)
    return seen


def is_right(fault: Fault, advice: Any) -> bool:
    stage, remedies = fault.names
    if not stage:
        return not advice.changes and "source" in advice.reason
    return any(change.stage == stage and change.fields.keys() & set(remedies) for change in advice.changes)


def applied(run: rk.Run) -> float:
    """Have the advice carried out, and give the rate while raykit measures it."""
    run.apply()
    until(lambda: run.refresh().advice is None or run.view.advice.measured_rows_s, look_s=0.2)
    measured = [record for record in records_of(run) if isinstance(record.event, AdviceMeasured)]
    return rate(run, measured[-1].at_unix_s)


def mended(fault: Fault) -> float:
    """Give the rate of the pipeline without the fault, once its plan stands."""
    assert fault.mended is not None
    run = start(*fault.mended)
    try:
        until(lambda: run.refresh().stages and run.view.stages[-1].rows_out)
        begun_s = time.time()
        until(lambda: time.time() - begun_s > STANDS_S + WINDOW_S, look_s=0.2)
        return rate(run, time.time())
    finally:
        run.stop()
        until(lambda: run.refresh().ended)


def rate(run: rk.Run, until_s: float) -> float:
    """Give the rows that left the last stage each second, over the window up to a moment.

    It is the slope of the least-squares line: they leave in bursts, and a count would be wrong by up to one of few.
    """
    last = run.refresh().stages[-1].name
    samples = [
        (record.at_unix_s, record.event.rows_out)
        for record in records_of(run)
        if isinstance(record.event, StageSampled) and record.event.stage == last
        if until_s - WINDOW_S <= record.at_unix_s <= until_s
    ]
    times, rows = np.array(samples).T
    return float(np.polyfit(times - times[0], rows, 1)[0])


def records_of(run: rk.Run) -> list[Any]:
    found: list[Any] = []
    while records := run.cluster.door.events(run.name, after=found[-1].number if found else 0, wait_s=0):
        found += records
    return found


def figures(trials: list[dict[str, Any]]) -> dict[str, Figure]:
    share = len(trials) / FAULTS
    for trial in trials:
        gain = f", gain {trial['expected']:.2f} said, {trial['measured']:.2f} measured" if "near" in trial else ""
        print(f"{trial['kind']}: {'right' if trial['right'] else 'WRONG'}{gain}: {trial['said']}")
    return {
        "advice that is right": Figure(value=sum(trial["right"] for trial in trials), goal=f">= {17 * share:g}"),
        "gains within 25 % of what was said": Figure(
            value=sum(trial.get("near", False) for trial in trials), goal=f">= {15 * share:g}"
        ),
        "faults": Figure(value=len(trials)),
    }


def kept(seed: int) -> dict[int, dict[str, Any]]:
    """Give the trials of a seed that were kept, by their numbers."""
    lines = KEPT.read_text().splitlines() if KEPT.exists() else []
    return {each["number"]: each["trial"] for each in map(json.loads, lines) if each["seed"] == seed}


def keep(seed: int, number: int, trial: dict[str, Any]) -> None:
    KEPT.parent.mkdir(exist_ok=True)
    with KEPT.open("a") as file:
        file.write(json.dumps({"seed": seed, "number": number, "trial": trial}) + "\n")


if __name__ == "__main__":
    main()
