"""From the SIGKILL of one of four training workers to the next committed step: raykit beside Ray Train.

The next committed step is the first whose number was never committed before the kill, on whatever rank; its time is
that of the mark which the rank writes to disk after the optimizer's step. Trials alternate; each is kept in
out/recovery.jsonl, and a run that was interrupted goes on with those that are missing (``--fresh`` begins again).

Sides: raykit with one warm spare; Ray Train with a fixed size at its defaults, with a checkpoint at each step or each
ten; the same tuned as its settings allow (the controller looks each 0.2 s, torch is loaded before workers need it).
Each run of raykit ends with a rank that is stopped (SIGSTOP), and a resize to two ranks and back: a pause is the longest
time between two steps' first commits, less the median step.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
from _loops import Mark, Marks, on_raykit
from _measure import Figure, processes_with, report

import raykit as rk
from raykit.cluster.local import SHIM

WORKERS = 4
STEPS_BEFORE = 25
KILLS_A_RUN = 4
RUNS = 5
WAIT_S = 240
KEPT = Path(__file__).parent.parent / "out" / "recovery.jsonl"
TUNED = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "RAY_preload_python_modules": "torch,pandas", "PYTHONPATH": str(SHIM)}

Trial = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one run of raykit with one kill: only whether it runs")
    parser.add_argument("--fresh", action="store_true", help="forget the trials of earlier runs")
    parser.add_argument("--model", choices=("mlp", "cnn"), default="mlp")
    arguments = parser.parse_args()
    if arguments.quick:
        print(*on_raykit_once(arguments.model, num_kills=1), sep="\n")
        report("recovery", {})
    if arguments.fresh:
        KEPT.unlink(missing_ok=True)
    kind = arguments.model
    sides: dict[str, Callable[[], list[Trial]]] = {
        "raykit": partial(on_raykit_once, kind),
        "ray train": partial(on_ray_train_once, kind, every=10, environment={}),
        "ray train, checkpoint each step": partial(on_ray_train_once, kind, every=1, environment={}),
        "ray train, tuned": partial(on_ray_train_once, kind, every=10, environment=TUNED),
    }
    for number in range(RUNS):
        for side, run in sides.items():
            if len({trial["run"] for trial in kept(kind, side)}) <= number:
                keep(kind, side, number, run())
    report(f"recovery, {kind}", figures(kind, list(sides)))


def figures(kind: str, sides: list[str]) -> dict[str, Figure]:
    """Compare the medians; all of a side's values are printed."""
    medians = {}
    for side in sides:
        times = [trial["next_commit_s"] for trial in kept(kind, side) if trial["what"] == "kill"]
        medians[side] = statistics.median(times)
        print(f"{kind}, {side}: median {medians[side]:.3f} s, worst {max(times):.3f} s, all {[round(each, 2) for each in times]}")
    ours = kept(kind, "raykit")
    lost = [trial["steps_lost"] for trial in ours if trial["what"] == "kill"]
    stops = [trial for trial in ours if trial["what"] == "stop"]
    late = [trial["next_commit_s"] - trial["limit_s"] for trial in stops]
    print(f"{kind}, raykit, SIGSTOP: {[round(trial['next_commit_s'], 2) for trial in stops]} s to the next commit")
    for what in ("resize to 2", f"resize to {WORKERS}"):
        print(f"{kind}, raykit, {what}: pauses {[round(trial['pause_s'], 2) for trial in ours if trial['what'] == what]} s")
    goals = {"ray train": 1 / 50, "ray train, checkpoint each step": 1 / 50, "ray train, tuned": 1 / 20}
    ratios = {
        f"next commit, raykit / {side}": Figure(value=medians["raykit"] / medians[side], goal=f"<= {goal}")
        for side, goal in goals.items()
    }
    return (
        ratios
        | {
            "next commit, raykit, s": Figure(value=medians["raykit"]),
            "committed steps lost, raykit, all kills": Figure(value=sum(lost), goal="<= 0"),
            "stopped rank, next commit after max(5 steps, 1 s) + 1 s, worst, s": Figure(value=max(late), goal="<= 0"),
        }
        | {
            f"pause beyond a step, {what}, worst, s": Figure(
                value=max(trial["pause_s"] for trial in ours if trial["what"] == what), goal="<= 0.2"
            )
            for what in ("resize to 2", f"resize to {WORKERS}")
        }
    )


def on_raykit_once(kind: str, num_kills: int = KILLS_A_RUN) -> list[Trial]:
    """Kill ranks of one run, each when the world is whole again and a spare is ready."""
    with tempfile.TemporaryDirectory(prefix="rk-") as folder:
        os.environ["RAYKIT_HOME"] = f"{folder}/home"
        marks = Marks(Path(folder))
        rk.up("bench", num_cpus=WORKERS, object_store_bytes=150_000_000)
        try:
            run = rk.train(on_raykit, kind, folder, workers=(1, WORKERS), name=kind)
            trials = []
            for _ in range(num_kills):
                until(lambda: whole(run.refresh()))
                seen = marks.read()[-1].step
                until(lambda seen=seen: marks.read()[-1].step >= seen + STEPS_BEFORE)
                victim = random.choice([rank for rank in run.refresh().ranks if rank.rank is not None and not rank.lost])
                trials.append({"what": "kill", **strike(marks, victim.pid, signal.SIGKILL)})
            until(lambda: whole(run.refresh()))
            step_s = median_step_s(marks)
            stopped = next(rank for rank in run.view.ranks if rank.rank == 1)
            trials.append(
                {"what": "stop", "limit_s": max(5 * step_s, 1) + 1, **strike(marks, stopped.pid, signal.SIGSTOP, in_flight=1)}
            )
            until(lambda: whole(run.refresh()))
            for workers in (2, WORKERS):
                begun_s = time.time()
                run.resize((1, workers))
                until(lambda workers=workers: run.refresh().world_size == workers)
                reached_s = time.time()
                until(lambda reached_s=reached_s: len(first_commits(marks, reached_s)) > 2)
                trials.append({"what": f"resize to {workers}", "pause_s": longest_gap_s(marks, begun_s) - median_step_s(marks)})
            marks.ask_to_stop()
            with suppress(rk.RaykitError):
                run.wait()
        finally:
            rk.down("bench")
    return trials


def first_commits(marks: Marks, since_s: float) -> list[float]:
    """Give the times at which steps were committed first, in the order of the steps."""
    times: dict[int, float] = {}
    for mark in marks.read():
        times.setdefault(mark.step, mark.at_s)
    return [at_s for at_s in times.values() if at_s >= since_s]


def median_step_s(marks: Marks) -> float:
    times = first_commits(marks, 0)[-STEPS_BEFORE:]
    return statistics.median(after - before for before, after in pairwise(times))


def longest_gap_s(marks: Marks, since_s: float) -> float:
    return max(after - before for before, after in pairwise(first_commits(marks, since_s)))


def whole(view: Any) -> bool:
    """Say whether all ranks train and a spare is ready."""
    spares = [rank for rank in view.ranks if rank.ready and not rank.lost and rank.rank is None]
    return bool(view.world_size == WORKERS and view.step > 0 and spares and view.state == "running")


def on_ray_train_once(kind: str, *, every: int, environment: dict[str, str]) -> list[Trial]:
    """Kill one worker of one run of Ray Train."""
    with tempfile.TemporaryDirectory(prefix="rt-") as folder:
        settings = {
            "kind": kind,
            "folder": folder,
            "every": every,
            "workers": WORKERS,
            "temp": f"{folder}/ray",
            "storage": f"{folder}/kept",
        }
        marks = Marks(Path(folder))
        program = [sys.executable, str(Path(__file__).parent / "_ray_train.py"), json.dumps(settings)]
        mark = {"RAYKIT_BENCHMARK": folder}
        with (Path(folder) / "log").open("w") as log:
            peer = subprocess.Popen(program, stdout=log, stderr=log, env=os.environ | environment | mark, start_new_session=True)
        try:
            until(lambda: alive(peer, folder) and marks.read() and marks.read()[-1].step >= STEPS_BEFORE)
            latest = {each.rank: each.pid for each in marks.read()}
            trial = {"what": "kill", **strike(marks, latest[WORKERS - 1], signal.SIGKILL)}
            marks.ask_to_stop()
            peer.wait(WAIT_S)
        finally:
            for process in processes_with(mark):
                process.kill()
            psutil.wait_procs(processes_with(mark), timeout=10)
            peer.wait(10)
    return [trial]


def alive(peer: subprocess.Popen[bytes], folder: str) -> bool:
    if peer.poll() is not None:
        raise RuntimeError((Path(folder) / "log").read_text()[-3000:])
    return True


def strike(marks: Marks, pid: int, number: signal.Signals, *, in_flight: int = 0) -> Trial:
    """Signal a worker, wait for the first step that was never committed before, and judge what was committed twice.

    A rank that is stopped may have done its part of so many steps ``in_flight``: those do not count as the next.
    """
    os.kill(pid, number)
    killed_s = time.time()
    before = max(mark.step for mark in marks.read() if mark.at_s <= killed_s)
    first: list[Mark] = []

    def committed() -> bool:
        first[:] = [mark for mark in marks.read() if mark.step > before + in_flight and mark.pid != pid][:1]
        return bool(first)

    until(committed)
    again = {mark.step for mark in marks.read() if killed_s + 0.05 < mark.at_s < first[0].at_s and mark.step < before}
    return {"next_commit_s": first[0].at_s - killed_s, "steps_lost": len(again)}


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {WAIT_S} s in vain")
        time.sleep(0.02)


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
