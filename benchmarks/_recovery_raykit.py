"""Trials of raykit: what a killed rank, a stopped one, a resize and a lost node cost."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from _loops import on_raykit
from _marks import LATEST_STEPS, Marks, Trial, first_commits, longest_gap_s, median_step_s, strike, until

import raykit as rk

WORKERS = 4
KILLS_A_RUN = 4


def ranks_lost(kind: str, num_kills: int = KILLS_A_RUN) -> list[Trial]:
    """Kill ranks of one run, each when the world is whole again and a spare is ready; then stop one, and resize."""
    with training(kind, num_cpus=WORKERS) as (run, marks):
        trials = []
        for _ in range(num_kills):
            wait_for_steps(run, marks)
            victim = random.choice([rank for rank in run.refresh().ranks if rank.rank is not None and not rank.lost])
            trials.append({"what": "kill", **strike(marks, {victim.pid}, signal.SIGKILL, world=WORKERS)})
        until(lambda: whole(run.refresh()))
        step_s = median_step_s(marks)
        stopped = next(rank for rank in run.view.ranks if rank.rank == 1)
        limit_s = max(5 * step_s, 1) + 1
        trials.append({"what": "stop", "limit_s": limit_s, **strike(marks, {stopped.pid}, signal.SIGSTOP, in_flight=1)})
        until(lambda: whole(run.refresh()))
        for workers in (2, WORKERS):
            begun_s = time.time()
            run.resize((1, workers))
            until(lambda workers=workers: run.refresh().world_size == workers)
            reached_s = time.time()
            until(lambda reached_s=reached_s: len(first_commits(marks, reached_s)) > 2)
            longest_s, latest_step_s = longest_gap_s(marks, begun_s), median_step_s(marks)
            pause = {"pause_s": longest_s - step_s, "longest_s": longest_s, "latest_step_s": latest_step_s}
            trials.append({"what": f"resize to {workers}", **pause})
    return trials


def node_lost(kind: str) -> list[Trial]:
    """Kill a further node of a cluster with as many nodes of one CPU as the run has ranks."""
    with training(kind, num_cpus=1, num_nodes=WORKERS) as (run, marks):
        wait_for_steps(run, marks)
        ranks = [rank.pid for rank in run.view.ranks if rank.rank is not None and not rank.lost]
        return [{"what": "kill", **strike(marks, processes_of_a_further_node(ranks), signal.SIGKILL)}]


@contextmanager
def training(kind: str, workers: int = WORKERS, **options: Any) -> Iterator[tuple[rk.Run, Marks]]:
    """Give a run in a cluster of its own, and its marks; both end with the block."""
    with tempfile.TemporaryDirectory(prefix="rk-") as folder:
        os.environ["RAYKIT_HOME"] = f"{folder}/home"
        marks = Marks(Path(folder))
        rk.up("bench", object_store_bytes=100_000_000, **options)
        try:
            run = rk.train(on_raykit, kind, folder, workers=(1, workers), name=kind)
            yield run, marks
        finally:
            rk.down("bench")


def wait_for_steps(run: rk.Run, marks: Marks) -> None:
    """Wait until the world is whole, and for some steps more."""
    until(lambda: whole(run.refresh()))
    seen = marks.read()[-1].step
    until(lambda: marks.read()[-1].step >= seen + LATEST_STEPS)


def whole(view: Any, workers: int = WORKERS) -> bool:
    """Say whether so many ranks train and a spare is ready.

    Raises:
        RuntimeError: the run is over.
    """
    if view.ended:
        raise RuntimeError(f"the run is {view.state}: {view.error}")
    living = [rank for rank in view.ranks if not rank.lost]
    ranks = [rank for rank in living if rank.rank is not None]
    spares = [rank for rank in living if rank.rank is None and rank.ready]
    return bool(len(ranks) == view.world_size == workers and view.step > 0 and spares and view.state == "running")


def processes_of_a_further_node(pids: list[int]) -> set[int]:
    """Give the raylet that started one of these workers, and all that it started; not the head's."""
    for pid in pids:
        raylet = next(each for each in psutil.Process(pid).parents() if each.name() == "raylet")
        if "--head" not in raylet.cmdline():
            return {raylet.pid, *(each.pid for each in raylet.children(recursive=True))}
    raise LookupError("all workers are on the head's node")
