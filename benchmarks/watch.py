"""Who is taken for dead: nobody who is only slow, and a node that says nothing soon.

- A run of four ranks on two CPUs (the MLP of 5.0 M parameters) beside eight processes that compute without end, for ten
  minutes: how many ranks it loses, and how many worlds break. Both should be none.
- One of four nodes falls silent: its raylet and its rank are stopped (SIGSTOP), so that nothing closes a socket. The next
  committed step is the first that was never committed before, on whatever rank. All nodes are on this machine, with one
  CPU slot each; it is never the head.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from _marks import first_commits, strike
from _measure import Figure, end_in_order, report
from _recovery_raykit import WORKERS, processes_of_a_further_node, training, wait_for_steps

import raykit as rk
from raykit.events import Event, WorkerLost, WorldBroken

LOAD = 8
MINUTES = 10.0
NODES_LOST = 5


def main() -> None:
    end_in_order()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="half a minute and one node: only whether it runs")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"under load ({MINUTES:g})")
    arguments = parser.parse_args()
    minutes, nodes = (0.5, 1) if arguments.quick else (arguments.minutes, NODES_LOST)
    figures = under_load(minutes)
    silences_s = [silent_node() for _ in range(nodes)]
    print(f"silent node: {[round(each, 2) for each in silences_s]} s to the next commit")
    figures["silent node, next commit, median, s"] = Figure(value=statistics.median(silences_s))
    figures["silent node, next commit, worst, s"] = Figure(value=max(silences_s), goal="<= 5")
    report("watch", {} if arguments.quick else figures)


def under_load(minutes: float) -> dict[str, Figure]:
    """Train beside processes that take the CPUs, and count who was taken for lost."""
    with training("mlp", num_cpus=WORKERS) as (run, marks):
        wait_for_steps(run, marks)
        begun_s = time.time()
        with busy_processes(LOAD):
            time.sleep(60 * minutes)
        steps = len(first_commits(marks, begun_s))
        events = events_of(run)
    print(f"under a load of {LOAD}, {minutes:g} min: {steps} steps")
    return {
        "false evictions under load": Figure(value=sum(isinstance(each, WorkerLost) for each in events), goal="== 0"),
        "worlds broken under load": Figure(value=sum(isinstance(each, WorldBroken) for each in events), goal="== 0"),
        "steps under load": Figure(value=steps),
    }


def silent_node() -> float:
    """Give the time from a node's silence to the next commit."""
    with training("mlp", num_cpus=1, num_nodes=WORKERS) as (run, marks):
        wait_for_steps(run, marks)
        ranks = [rank.pid for rank in run.view.ranks if rank.rank is not None and not rank.lost]
        node = processes_of_a_further_node(ranks)
        try:
            return float(strike(marks, node, signal.SIGSTOP, in_flight=1)["next_commit_s"])
        finally:
            for pid in node:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


def events_of(run: rk.Run) -> list[Event]:
    """Give all that the run's log has."""
    events: list[Event] = []
    after = 0
    while records := run.cluster.door.events(run.name, after=after, wait_s=0):
        events += [record.event for record in records]
        after = records[-1].number
    return events


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Have processes that compute without end for the block."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for each in running:
            each.kill()
            each.wait()


if __name__ == "__main__":
    main()
