"""The Bamboo p3 spot trace as changes of a world of a few workers."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

TRACE = Path(__file__).parent / "data" / "bamboo_spot_p3.csv"
MOST_WORKERS = 8
LEAST_WORKERS = 2  # the trace never loses all its nodes, and with one worker a loss would be that


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """At one moment of the trace, nodes came or went: the world's size before and after, and how many ranks vanish."""

    at_s: float
    before: int
    after: int
    kills: int

    @property
    def has_effect(self) -> bool:
        """False for a node that comes when the world is as large as it may be."""
        return bool(self.kills) or self.after != self.before


def changes() -> list[Change]:
    """Give the trace's moments, the first of which starts the run, on 2 to 8 workers.

    The number of workers is that of nodes times 8 over the trace's most (32), rounded down. A change moves it by one at
    least, in its own direction, where the rounding would hide it. All workers that a removal takes vanish at once; at
    two workers it takes one, and the spare has its place.
    """
    moments = _moments()
    most = max(nodes for _, nodes, _ in moments)
    found: list[Change] = []
    size = 0
    for at_s, nodes, added in moments:
        scaled = min(max(nodes * MOST_WORKERS // most, LEAST_WORKERS), MOST_WORKERS)
        if not found:
            after, kills = scaled, 0
        elif added:
            after, kills = min(max(scaled, size + 1), MOST_WORKERS), 0
        else:
            after = max(min(scaled, size - 1), LEAST_WORKERS)
            kills = max(size - after, 1)
        found.append(Change(at_s=at_s, before=size, after=after, kills=kills))
        size = after
    return found


def shares(for_s: float, step_s: float) -> list[float]:
    """Give which share of the trace's most nodes is there at each step, with the whole trace compressed into ``for_s``."""
    moments = _moments()[1:]  # the first starts the run
    scale, most = for_s / moments[-1][0], max(nodes for _, nodes, _ in moments)
    found, place = [], 0
    for step in range(int(for_s / step_s)):
        while place + 1 < len(moments) and moments[place + 1][0] * scale <= step * step_s:
            place += 1
        found.append(moments[place][1] / most)
    return found


def _moments() -> list[tuple[float, int, bool]]:
    """Give the time, the number of nodes after it, and whether nodes came, for each moment of the trace."""
    with TRACE.open() as file:
        rows = [(int(ms), action) for ms, action, _ in csv.reader(file)]
    moments, nodes = [], 0
    for (ms, action), group in groupby(rows):
        nodes += len(list(group)) * (1 if action == "add" else -1)
        moments.append((ms / 1000, nodes, action == "add"))
    return moments
