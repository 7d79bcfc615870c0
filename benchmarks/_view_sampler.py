"""What the sampler of a node costs: 8 stand-in GPUs, 8 replicas that are followed, once a second.

The stand-in answers at NVML's C interface and at once, so this is what raykit's own work costs; a driver's own time comes
to it (2.5 to 12 us a figure, 4.5 ms a process list, by MangoHud's issue 2104; lists are asked once in five seconds).
CPU time of processes is counted, so that what else the machine does changes little.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from _measure import Figure, processes_with
from _view_stage import NUM_REPLICAS, nap

import raykit as rk
from raykit.cluster.record import MARK, cluster_folder

sys.path.append(str(Path(__file__).parents[1]))  # the stand-in is the tests'
from tests.nvml.standin import StandIn, gpu

NAME = "bench"
SETTLE_S = 6.0  # the first lists of processes and users are behind


def sampler_figures(rounds: int, seconds: float) -> dict[str, Figure]:
    """Give the share of a core that the sampler takes; the hub stands beside it."""
    with _cluster() as stand_in:
        run = rk.Pipeline([nap]).run(range(10_000_000), name="napping")
        pids = [replica.pid for replica in _replicas(run)]
        users = [f"process {index} {pid} 2000000000 50" for index, pid in enumerate(pids)]
        stand_in.tell(*(gpu(index, 50, 4_000_000_000) for index in range(NUM_REPLICAS)), *users)
        time.sleep(SETTLE_S)
        assert all(replica.use and replica.use.num_gpus for replica in run.refresh().stages[0].replicas), "it does not sample"
        watched = {"sampler": _process("ray::NodeSampler"), "hub": _process("ray::Hub")}
        shares: dict[str, list[float]] = {name: [] for name in watched}
        for number in range(rounds):
            before = {name: (_spent_s(process), time.monotonic()) for name, process in watched.items()}
            time.sleep(seconds)
            for name, process in watched.items():
                spent_s, begun_s = before[name]
                shares[name].append((_spent_s(process) - spent_s) / (time.monotonic() - begun_s))
            print(
                f"round {number + 1} of {rounds}:", ", ".join(f"{name} {each[-1]:.2%}" for name, each in shares.items()), flush=True
            )
        run.stop()
    figures = {
        "sampler, share of a core, median": Figure(value=statistics.median(shares["sampler"]), goal="<= 0.01"),
        "sampler, share of a core, worst": Figure(value=max(shares["sampler"])),
    }
    return figures | {"hub, share of a core, median": Figure(value=statistics.median(shares["hub"]))}


@contextmanager
def _cluster() -> Iterator[StandIn]:
    home = Path(tempfile.mkdtemp(prefix="rk-"))
    (home / "nvml").mkdir()
    stand_in = StandIn(home / "nvml")
    os.environ |= {"RAYKIT_HOME": str(home)} | stand_in.environment
    try:
        rk.up(NAME, num_cpus=2, object_store_bytes=100_000_000)
        yield stand_in
    finally:
        rk.down(NAME)
        shutil.rmtree(home)


def _replicas(run):
    while True:
        stages = run.refresh().stages
        assert not run.view.ended, run.view.error
        if stages and len(stages[0].replicas) == NUM_REPLICAS:
            return stages[0].replicas
        time.sleep(0.1)


def _process(name: str) -> psutil.Process:
    return next(each for each in processes_with({MARK: str(cluster_folder(NAME))}) if each.name().startswith(name))


def _spent_s(process: psutil.Process) -> float:
    return sum(process.cpu_times()[:2])
