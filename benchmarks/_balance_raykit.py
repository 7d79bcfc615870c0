"""Trials of raykit: the rate of a pipeline when its plan stands, and how soon it is there."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from _balance_marks import Emulated, Timeline
from _balance_pipelines import MOST_REPLICAS, Shape, Stage
from _balance_watch import watched
from _marks import Trial

import raykit as rk
from raykit.events import Decided

STEADY_S = 30.0
STEADY_BATCHES = 8
WARM_S = 10.0  # until the replicas have started
WAITING_BATCHES = 3  # what waits between stages when the source is dry, in the slowest one's batches
WATCHED_S = 120.0


@contextmanager
def cluster() -> Iterator[None]:
    """Give a cluster with a slot for each replica."""
    with tempfile.TemporaryDirectory(prefix="rk-") as folder:
        os.environ["RAYKIT_HOME"] = f"{folder}/home"
        rk.up("bench", num_cpus=MOST_REPLICAS, object_store_bytes=100_000_000)
        try:
            yield
        finally:
            rk.down("bench")


def steady(shape: Shape, *, even: bool = False) -> Trial:
    """Run a pipeline until its source is dry, and give its rate over the bound, or over that of an even split."""
    steady_s = max(STEADY_S, STEADY_BATCHES * shape.slowest_s)
    bound = shape.even_bound if even else shape.bound
    replicas = (shape.even, shape.even) if even else (1, MOST_REPLICAS)
    with tempfile.TemporaryDirectory(prefix="rk-") as folder:
        filling_s = sum(stage.cost_s for stage in shape.stages)
        whole_s = WARM_S + filling_s + steady_s + WAITING_BATCHES * shape.slowest_s
        rows = shape.rows(whole_s * bound / shape.bound)
        started(shape, folder, rows, replicas).wait()
        found = Timeline(shape, Path(folder))
        stands_s = found.up_s(shape.even * len(shape.stages) if even else MOST_REPLICAS)
        assert found.begun_s is not None
        if stands_s is None:
            raise RuntimeError(f"{shape} had {found.ups} only")
        begin_s, end_s = stands_s + filling_s, found.dry_s()
        started_replicas = [sum(up < end_s for up in ups) for ups in found.ups.values()]
        print(f"  replicas started {started_replicas}, best {[shape.even] * len(shape.stages) if even else shape.counts}")
        return {
            "ratio": found.rate(begin_s, end_s) / bound,
            "window_s": end_s - begin_s,
            "stands_s": stands_s - found.begun_s,
            "bound": shape.bound,
            "even_bound": shape.even_bound,
        }


def reaction(shape: Shape) -> Trial:
    """Give how soon a pipeline is at 95 % of its bound, also when a stage has become slow, and the floors of both."""
    with tempfile.TemporaryDirectory(prefix="rk-") as folder:
        run = started(shape, folder, shape.rows(2 * WATCHED_S), (1, MOST_REPLICAS))
        try:
            trial, slowed_at_s = watched(shape, Path(folder), WATCHED_S)
        finally:
            run.stop()
        found, decided = Timeline(shape, Path(folder)), _decisions(run)
        until_end = time.time() + 60
        while not run.refresh().ended and time.time() < until_end:
            time.sleep(0.2)
    begun_s = found.begun_s or 0.0
    for name, since_s, each in (("start", begun_s, shape), ("slowed", slowed_at_s, shape.slowed)):
        later = [at_s for at_s, _ in decided if at_s > since_s]
        until_s = slowed_at_s if name == "start" and slowed_at_s else time.time()
        ups = [up for stage in found.ups.values() for up in stage if later and later[0] < up < until_s]
        if ups:
            trial[f"{name}_floor_s"] = max(ups) - later[0] + 5 * each.slowest_s
            trial[f"{name}_decided_s"] = later[0] - since_s
    return trial


def started(shape: Shape, folder: str, rows: int, replicas: tuple[int, int]) -> rk.Run:
    """Start a pipeline on so many rows."""
    stages = [_stage(stage, folder, replicas) for stage in shape.stages]
    return rk.Pipeline(stages).run(range(rows), name=f"pipeline{shape.number}")


def _stage(stage: Stage, folder: str, replicas: tuple[int, int]) -> type:
    class Here(Emulated):
        def __init__(self) -> None:
            super().__init__(stage, folder)

    return rk.stage(cpus=1, batch=stage.batch, replicas=replicas, name=stage.name)(Here)


def _decisions(run: rk.Run) -> list[tuple[float, tuple[str, ...]]]:
    """Give the time and the matter of each decision of a run."""
    found, after = [], 0
    while records := run.cluster.door.events(run.name, after=after, wait_s=0):
        after = records[-1].number
        found += [(record.at_unix_s, record.event.about) for record in records if isinstance(record.event, Decided)]
    return found
