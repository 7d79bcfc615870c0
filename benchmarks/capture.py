"""How long 200 MB of the notebook's take to a running task: an array that a cell's function uses, beside ``ray.put`` and ``ray.get``.

Both sides end in a task of a worker that is up, when it has touched each page of the array. raykit's begins where a cell begins:
the function is packed, its array brought to the cluster through the door and the cluster's folder, the payload opened in the
task. So neither side has the start of a run, which costs the same with and without an array. Each round has an array of its own;
``again`` captures the same one once more.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from _measure import ROUNDS, Figure, alternate, end_in_order, ratio, report

import raykit as rk
from raykit.client.capture import pack
from raykit.client.sending import sent
from raykit.wire.buffers import FOLDER, mapped
from raykit.wire.payload import FunctionWork, Payload

NUM_BYTES = 200_000_000
DOUBLES_A_PAGE = 512


def main() -> None:
    end_in_order()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one round: only whether it runs")
    parser.add_argument("--rounds", type=int, default=ROUNDS + 2)
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="rk-"))
    os.environ["RAYKIT_HOME"] = str(home)
    try:
        cluster = rk.up("bench", num_cpus=2, object_store_bytes=1_000_000_000)
        rk.connect()
        figures = compare(1 if options.quick else options.rounds, cluster)
    finally:
        rk.down("bench")
        shutil.rmtree(home)
    report("capture", figures)


def compare(rounds: int, cluster: Any) -> dict[str, Figure]:
    """Measure all sides in turn, and return their medians and the worst."""
    data = Arrays()
    sides: dict[str, Callable[[], float]] = {
        "raykit": lambda: by_raykit(cluster, data.new()),
        "raykit again": lambda: by_raykit(cluster, data.latest),
        "ray": lambda: by_ray(data.new()),
    }
    for warm_up in sides.values():
        warm_up()
    times = alternate({name: sides[name] for name in ("raykit", "ray")}, rounds=rounds)
    by_raykit(cluster, data.new())
    times |= alternate({"raykit again": sides["raykit again"]}, rounds=rounds)
    return {
        "200 MB to a task, raykit / ray.put and ray.get": Figure(value=ratio(times, "raykit", "ray"), goal="<= 1.5"),
        "200 MB of the same cell again, s": Figure(value=statistics.median(times["raykit again"]), goal="<= 0.1"),
    } | {
        f"{word}, {name}, s": Figure(value=take(each))
        for name, each in times.items()
        for word, take in (("median", statistics.median), ("worst", max))
    }


class Arrays:
    """Arrays that nobody has seen."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(0)
        self.latest = self.new()

    def new(self) -> np.ndarray[Any, Any]:
        self.latest = self._random.random(NUM_BYTES // 8)
        return self.latest


def by_raykit(cluster: Any, data: np.ndarray[Any, Any]) -> float:
    import ray

    def landed() -> float:
        return float(data[::DOUBLES_A_PAGE].sum())

    task = tasks()[0]
    begun_unix_s = time.time()
    payload = sent(pack(FunctionWork(function=landed), {"landed": landed}, {}), cluster.ask, here=cluster.record.folder)
    at_unix_s: float = ray.get(task.remote(payload.to_bytes(), cluster.record.folder / FOLDER))
    return at_unix_s - begun_unix_s


def by_ray(data: np.ndarray[Any, Any]) -> float:
    import ray

    task = tasks()[1]
    begun_unix_s = time.time()
    at_unix_s: float = ray.get(task.remote([ray.put(data)]))
    return at_unix_s - begun_unix_s


@cache
def tasks() -> tuple[Any, Any]:
    """Return the tasks in which each side's array is taken; they return the time, Unix, in seconds."""
    import ray

    @ray.remote(num_cpus=1)
    def open_payload(payload: bytes, folder: Path) -> float:
        Payload.from_bytes(payload, read=lambda name: mapped(folder / name)).open().run()
        return time.time()

    @ray.remote(num_cpus=1)
    def get(refs: list[Any]) -> float:
        float(ray.get(refs[0])[::DOUBLES_A_PAGE].sum())
        return time.time()

    return open_payload, get


if __name__ == "__main__":
    main()
