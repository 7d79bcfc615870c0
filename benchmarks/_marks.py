"""Marks on disk, one for each committed step of each rank, and what is read from them."""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

WAIT_S = 240
LATEST_STEPS = 25

Trial = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A committed step of a rank."""

    at_s: float
    rank: int
    step: int
    pid: int


class Marks:
    """Each rank writes its process and its committed steps to a file of its own; whoever watches reads them all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read_to: dict[Path, int] = {}
        self._found: list[Mark] = []

    def write(self, rank: int, step: int) -> None:
        with (self._folder / f"{os.getpid()}.marks").open("a") as file:
            file.write(f"{time.time()} {rank} {step}\n")

    def read(self) -> list[Mark]:
        """Give all marks by time. Only what is new is read from disk."""
        for file in self._folder.glob("*.marks"):
            begun = self._read_to.get(file, 0)
            if file.stat().st_size == begun:
                continue
            with file.open("rb") as opened:
                opened.seek(begun)
                whole = opened.read().rpartition(b"\n")[0]  # a process that is killed, or that writes now, has half a line
            for line in whole.splitlines():
                at_s, rank, step = line.split()
                self._found.append(Mark(at_s=float(at_s), rank=int(rank), step=int(step), pid=int(file.stem)))
            self._read_to[file] = begun + len(whole) + bool(whole)
        self._found.sort(key=lambda mark: mark.at_s)
        return self._found

    def ask_to_stop(self) -> None:
        (self._folder / "stop").touch()

    @property
    def stop_asked(self) -> bool:
        return (self._folder / "stop").exists()


def first_commits(marks: Marks, since_s: float) -> list[float]:
    """Give the times at which steps were committed first, in the order of the steps."""
    times: dict[int, float] = {}
    for mark in marks.read():
        times.setdefault(mark.step, mark.at_s)
    return [at_s for at_s in times.values() if at_s >= since_s]


def median_step_s(marks: Marks) -> float:
    times = first_commits(marks, 0)[-LATEST_STEPS:]
    return statistics.median(after - before for before, after in pairwise(times))


def longest_gap_s(marks: Marks, since_s: float) -> float:
    return max(after - before for before, after in pairwise(first_commits(marks, since_s)))


def steps_lost(marks: Marks, since_s: float = 0.0) -> int:
    """Count the steps that were committed again after a later one had been committed."""
    furthest, again = 0, set()
    for mark in marks.read():
        if mark.at_s > since_s and mark.step < furthest:
            again.add(mark.step)
        furthest = max(furthest, mark.step)
    return len(again)


def strike(marks: Marks, pids: Collection[int], number: signal.Signals, *, in_flight: int = 0, world: int | None = None) -> Trial:
    """Signal processes, wait for the first step that was never committed before, and judge what was committed twice.

    Args:
        marks: of the run.
        pids: of a worker, or of all that a node was.
        number: the signal.
        in_flight: a rank that is stopped may have done its part of so many steps: those do not count as the next.
        world: wait also for the first step that so many ranks commit, and give the time until its first commit.
    """
    for pid in pids:
        os.kill(pid, number)
    struck_s = time.time()
    before = max(mark.step for mark in marks.read() if mark.at_s <= struck_s)

    def later() -> list[Mark]:
        return [mark for mark in marks.read() if mark.step > before + in_flight and mark.pid not in pids]

    until(later)
    first = later()[0]
    again = {mark.step for mark in marks.read() if struck_s + 0.05 < mark.at_s < first.at_s and mark.step < before}
    trial = {"next_commit_s": first.at_s - struck_s, "steps_lost": len(again)}
    if world is None:
        return trial
    until(lambda: _whole_s(later(), world))
    return trial | {"full_size_s": _whole_s(later(), world) - struck_s}


def _whole_s(marks: list[Mark], world: int) -> float:
    """Give the time of the first commit of the first step that so many processes committed, or 0."""
    by_step: dict[int, list[Mark]] = {}
    for mark in marks:
        by_step.setdefault(mark.step, []).append(mark)
    return next((of_step[0].at_s for of_step in by_step.values() if len({mark.pid for mark in of_step}) >= world), 0.0)


def until(condition: Callable[[], Any], *, look_s: float = 0.02) -> None:
    """Wait until it holds.

    Raises:
        TimeoutError: it did not within ``WAIT_S``.
    """
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {WAIT_S} s in vain")
        time.sleep(look_s)
