"""Sides that take turns, their medians, and the last line of output, which a program reads."""

from __future__ import annotations

import json
import operator
import signal
import statistics
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import psutil

ROUNDS = 5
HOLDS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, "==": operator.eq}

Times = dict[str, list[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number; ``goal`` is written as ``<= 0.5``, and None for a figure that stands beside the others to compare."""

    value: float
    goal: str | None = None

    @property
    def holds(self) -> bool | None:
        if self.goal is None:
            return None
        sign, bound = self.goal.split()
        return bool(HOLDS[sign](self.value, float(bound)))


def end_in_order() -> None:
    """Let a program that is told to end (SIGTERM) go through its cleanup: no cluster and no peer is left behind."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def alternate(sides: dict[str, Callable[[], float]], *, rounds: int = ROUNDS, unit: str = "s") -> Times:
    """Measure all sides in turn, in each round from the other end, so that a machine that grows slower treats them alike."""
    times: Times = {name: [] for name in sides}
    for number in range(rounds):
        order = list(sides) if number % 2 == 0 else list(reversed(sides))
        for name in order:
            times[name].append(sides[name]())
            print(f"round {number + 1} of {rounds}: {name} {times[name][-1]:.3f} {unit}", flush=True)
    for name, all_of_it in times.items():
        print(f"{name}: median {statistics.median(all_of_it):.3f} {unit}, worst {max(all_of_it):.3f} {unit}")
    return times


def processes_with(mark: dict[str, str]) -> list[psutil.Process]:
    """Give the processes that have ``mark`` in their environment."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # gone, or another user's
            if mark.items() <= process.environ().items():
                found.append(process)
    return found


def ratio(times: Times, ours: str, theirs: str) -> float:
    """Give the ratio of two sides' medians."""
    return statistics.median(times[ours]) / statistics.median(times[theirs])


def report(benchmark: str, figures: dict[str, Figure]) -> None:
    """Print the figures, and end the program with 1 where a goal is missed."""
    for name, figure in figures.items():
        word = {True: "holds", False: "MISSED", None: "no goal"}[figure.holds]
        print(f"{name}: {figure.value:.3g} ({figure.goal or 'beside the others'}: {word})")
    print(
        json.dumps(
            {
                "benchmark": benchmark,
                "figures": {
                    name: {"value": round(each.value, 4), "goal": each.goal, "holds": each.holds} for name, each in figures.items()
                },
            }
        )
    )
    sys.exit(any(each.holds is False for each in figures.values()))
