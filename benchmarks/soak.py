"""Hours of elastic training with a change of the world each 20 committed steps: the rows stay right, and nothing grows.

The changes take turns: a rank is killed; two are; the run is made smaller, and larger; the host is killed; a rank is
stopped (SIGSTOP) each third time round, since finding it takes seconds. A change comes 20 committed steps after the
world is whole again and a spare is warm. The model is the MLP's smaller sibling (0.1 M parameters), so that it is
membership that is soaked; each step sleeps 20 ms, so that the cores are not only training.

Rows are counted by the training itself: beside the network a parameter holds a number for each row, whose gradient and
learning rate make each committed step take 1 from the rows of its batch. At the end every row must have been counted as
often as the steps from the first to the last say, by each batch's definition.

Once a minute, when the world is whole at its full size, the cluster's processes are counted, and their memory is summed:
what is theirs alone and, by shares, what they share with each other (Pss_Anon and Pss_Shmem of /proc). Pages of files
are left out: the system can drop them, and a library's share falls when another program uses it too. Growth is the slope of a line fitted to the samples after the first ten minutes (Theil and Sen:
the median slope of all pairs, so that a worker that happens to start makes no slope). The bound on memory is for all of
the cluster's processes together, in which some 1,000 workers an hour are started and lost: 50 kB for each of them.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import combinations, cycle
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from _loops import BATCH, NUM_ROWS, counted
from _marks import Marks, until
from _measure import Figure, end_in_order, report
from _recovery_raykit import whole

import raykit as rk
from raykit.cluster import record
from raykit.engine.training.feed import global_batch

CLUSTER = "soak"
WORKERS, FEWER = 4, 2
STEPS_BETWEEN = 20
SAMPLE_S = 60.0
SETTLED_S = 600.0
LEAST_SAMPLES = 10
QUICK_S, QUICK_SAMPLE_S = 60.0, 15.0
MEMORY_GOAL_MB = 50
LOOK_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What the cluster's processes are at one moment."""

    at_s: float
    processes: int
    memory_mb: dict[str, float]
    """By the processes' names."""

    @property
    def total_mb(self) -> float:
        return sum(self.memory_mb.values())


def main() -> None:
    end_in_order()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one minute: only whether it runs; nothing is said of growth")
    parser.add_argument("--hours", type=float, default=2.0, metavar="H")
    arguments = parser.parse_args()
    for_s = QUICK_S if arguments.quick else arguments.hours * 3600
    with tempfile.TemporaryDirectory(prefix="rk-") as folder:
        os.environ["RAYKIT_HOME"] = f"{folder}/home"
        rk.up(CLUSTER, num_cpus=WORKERS, object_store_bytes=100_000_000)
        try:
            run = rk.train(counted, folder, workers=(1, WORKERS), name="soak", checkpoint_every="30s")
            made, samples = soak(run, for_s, QUICK_SAMPLE_S if arguments.quick else SAMPLE_S)
            Marks(Path(folder)).ask_to_stop()
            result = run.wait().result
        finally:
            rk.down(CLUSTER)
    print(f"changes: {made}; {result['step']} steps, {result['rows']} rows")
    report("soak", rows_figures(result, made) | growth_figures(samples))


def soak(run: rk.Run, for_s: float, sample_s: float) -> tuple[dict[str, int], list[Sample]]:
    """Change the world over and over; count the changes of each sort, and give the samples."""
    begun_s = time.monotonic()
    made: dict[str, int] = {}
    samples: list[Sample] = []
    for name, change in cycle(changes()):
        settle(run)
        passed_s = time.monotonic() - begun_s
        if run.view.world_size == WORKERS and passed_s >= len(samples) * sample_s:
            samples.append(sample(passed_s))
            print(f"{passed_s / 60:6.1f} min: {samples[-1].processes} processes, {samples[-1].total_mb:.0f} MB, {made}", flush=True)
        if passed_s > for_s:
            return made, samples
        try:
            change(run)
        except TimeoutError as exc:
            exc.add_note(f"The change was a {name}, after {made}. The run: {run.view!r}")
            raise
        made[name] = made.get(name, 0) + 1
    raise AssertionError("a cycle has no end")


def changes() -> list[tuple[str, Callable[[rk.Run], None]]]:
    """Give three rounds of changes, with a hang in the first."""
    usual: list[tuple[str, Callable[[rk.Run], None]]] = [
        ("kill", partial(strike, signal.SIGKILL, 1)),
        ("kill of two", partial(strike, signal.SIGKILL, 2)),
        ("resize down", partial(resize, FEWER)),
        ("resize up", partial(resize, WORKERS)),
        ("kill of the host", kill_host),
    ]
    return [*usual, ("hang", partial(strike, signal.SIGSTOP, 1)), *usual, *usual]


def strike(number: signal.Signals, count: int, run: rk.Run) -> None:
    """Signal some ranks, and wait until the run knows that they are lost."""
    ranks = [rank.pid for rank in run.refresh().ranks if rank.rank is not None and not rank.lost]
    victims = random.sample(ranks, count)
    for pid in victims:
        os.kill(pid, number)
    until(lambda: not [rank for rank in run.refresh().ranks if rank.pid in victims and not rank.lost], look_s=LOOK_S)


def resize(workers: int, run: rk.Run) -> None:
    run.resize((1, workers))
    until(lambda: run.refresh().world_size == workers, look_s=LOOK_S)


def kill_host(run: rk.Run) -> None:
    attempts = run.view.host_attempts
    run.drill("kill-host")
    until(lambda: run.refresh().host_attempts > attempts, look_s=LOOK_S)


def settle(run: rk.Run) -> None:
    """Wait until the world is whole, at the size that was asked for last, a spare is warm, and for some steps more."""
    until(lambda: whole(run.refresh(), (run.view.resized_to or (1, WORKERS))[1]), look_s=LOOK_S)
    seen = run.view.step
    until(lambda: run.refresh().step >= seen + STEPS_BETWEEN, look_s=LOOK_S)


def sample(at_s: float) -> Sample:
    """Count the cluster's processes and sum their memory."""
    count, memory_mb = 0, Counter[str]()
    for process in record.processes(CLUSTER):
        with suppress(psutil.Error, OSError):  # it ended meanwhile
            name, kept_mb = re.sub(r":w\d+.*", "", process.name()), kept_by(process.pid)
            memory_mb[name] += kept_mb
            count += 1
    return Sample(at_s=at_s, processes=count, memory_mb=dict(memory_mb))


def kept_by(pid: int) -> float:
    """Give the memory of a process that is no page of a file, in MB."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(kilobytes) for kilobytes in re.findall(r"^Pss_(?:Anon|Shmem): +(\d+) kB", rollup, re.MULTILINE)) / 1000


def rows_figures(result: dict[str, Any], made: dict[str, int]) -> dict[str, Figure]:
    """Compare what the parameters counted with what the steps' batches hold."""
    expected = np.zeros(NUM_ROWS, dtype=int)
    for step in range(result["step"]):
        expected[global_batch(NUM_ROWS, BATCH, 0, step)] += 1  # a batch holds no row twice
    wrong = int(np.abs(np.rint(result["counts"]).astype(int) - expected).sum())
    return {
        "rows counted too often or too seldom, all": Figure(value=wrong, goal="== 0"),
        "rows that the run says, less steps times batch": Figure(value=result["rows"] - result["step"] * BATCH, goal="== 0"),
        "changes of the world": Figure(value=sum(made.values())),
    }


def growth_figures(samples: list[Sample]) -> dict[str, Figure]:
    """Fit the samples after the first ten minutes; nothing, where they are too few to say."""
    settled = [each for each in samples if each.at_s >= SETTLED_S]
    print("minute, processes, memory in MB:", [(round(each.at_s / 60), each.processes, round(each.total_mb)) for each in samples])
    if len(settled) < LEAST_SAMPLES:
        print(f"not measured: growth, which takes {LEAST_SAMPLES} samples after the first {SETTLED_S / 60:.0f} minutes")
        return {}
    processes = slope_per_hour([(each.at_s, each.processes) for each in settled])
    memory = slope_per_hour([(each.at_s, each.total_mb) for each in settled])
    for name in sorted({name for each in settled for name in each.memory_mb}):
        slope = slope_per_hour([(each.at_s, each.memory_mb.get(name, 0.0)) for each in settled])
        print(f"{name}: {settled[-1].memory_mb.get(name, 0.0):.0f} MB at the end, {slope:+.1f} MB each hour")
    return {
        "growth of processes, each hour": Figure(value=processes, goal="<= 0"),
        "growth of memory, MB each hour": Figure(value=memory, goal=f"<= {MEMORY_GOAL_MB}"),
        "memory at the end, MB": Figure(value=settled[-1].total_mb),
    }


def slope_per_hour(points: list[tuple[float, float]]) -> float:
    """Give the median slope of all pairs of points (Theil 1950, Sen 1968), an hour."""
    return 3600 * statistics.median((after - before) / (later - at) for (at, before), (later, after) in combinations(points, 2))


if __name__ == "__main__":
    main()
