"""How long 200 MB of the notebook's take to a running task: an array that a cell's function uses, beside ``ray.put`` and ``ray.get``.

Each side is timed from the call in the kernel to the moment at which the task has touched each page of the array, and without an
array in turn; the difference is what the array costs. Rounds have arrays of their own; ``again`` runs the same function once more.
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
from _measure import ROUNDS, Figure, alternate, end_in_order, report

import raykit as rk

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
        figures = compare(1 if options.quick else options.rounds, Path(cluster.record.folder))
    finally:
        rk.down("bench")
        shutil.rmtree(home)
    report("capture", figures)


def compare(rounds: int, folder: Path) -> dict[str, Figure]:
    """Measure all sides in turn, and return the medians and the worst of what the array costs."""
    data = Arrays()
    sides: dict[str, Callable[[], float]] = {
        "raykit without": lambda: by_raykit(None),
        "raykit": lambda: by_raykit(data.new()),
        "raykit again": lambda: by_raykit(data.latest),
        "ray without": lambda: by_ray(None),
        "ray": lambda: by_ray(data.latest),
    }
    for warm_up in sides.values():
        warm_up()
    times = alternate(sides, rounds=rounds)
    cost = {
        name: [mine - bare for mine, bare in zip(times[name], times[f"{name.partition(' ')[0]} without"], strict=True)]
        for name in ("raykit", "raykit again", "ray")
    }
    for name, each in cost.items():
        print(f"200 MB by {name}: median {statistics.median(each):.3f} s, worst {max(each):.3f} s")
    stored = sum(file.stat().st_size for file in (folder / "buffers").iterdir())
    print(f"stored: {stored / 1e6:.0f} MB of {(rounds + 1) * NUM_BYTES / 1e6:.0f} MB that were captured")
    median = {name: statistics.median(each) for name, each in cost.items()}
    return {
        "200 MB to a task, raykit / ray.put and ray.get": Figure(value=median["raykit"] / median["ray"], goal="<= 1.5"),
        "200 MB of the same cell again, s": Figure(value=median["raykit again"], goal="<= 0.1"),
        "200 MB to a task, raykit, s": Figure(value=median["raykit"]),
        "200 MB to a task, ray, s": Figure(value=median["ray"]),
        "worst, raykit, s": Figure(value=max(cost["raykit"])),
        "worst, raykit again, s": Figure(value=max(cost["raykit again"])),
        "worst, ray, s": Figure(value=max(cost["ray"])),
    }


class Arrays:
    """Arrays that nobody has seen."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(0)
        self.latest = self.new()

    def new(self) -> np.ndarray[Any, Any]:
        self.latest = self._random.random(NUM_BYTES // 8)
        return self.latest


def by_raykit(data: np.ndarray[Any, Any] | None) -> float:
    def landed() -> float:
        import time

        if data is not None:
            data[::DOUBLES_A_PAGE].sum()
        return time.time()

    begun_unix_s = time.time()
    at_unix_s: float = rk.run(landed, name="landed").wait().result
    return at_unix_s - begun_unix_s


def by_ray(data: np.ndarray[Any, Any] | None) -> float:
    import ray

    task = ray_task()
    begun_unix_s = time.time()
    refs = [] if data is None else [ray.put(data)]
    at_unix_s: float = ray.get(task.remote(refs))
    return at_unix_s - begun_unix_s


@cache
def ray_task() -> Any:
    import ray

    @ray.remote(num_cpus=1)
    def landed(refs: list[Any]) -> float:
        import time

        for ref in refs:
            ray.get(ref)[::DOUBLES_A_PAGE].sum()
        return time.time()

    return landed


if __name__ == "__main__":
    main()
