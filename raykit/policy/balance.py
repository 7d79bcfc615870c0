"""How many replicas each stage of a pipeline gets: max-min fair under CPUs, GPUs and memory, on whole nodes.

A pipeline is as fast as its slowest stage. A stage of ``n`` replicas, each busy for ``work_s`` seconds a source row, takes
``n / work_s`` rows a second. Giving the next replica to the slowest stage until that one cannot grow any more is optimal:
for a wanted rate z every stage needs at least ceil(z * work_s) replicas, and these counts are what the greedy rule passes
through.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import median

from raykit.decisions import Scale

WORTHWHILE = 1.05  # a plan that is faster by less moves nothing
WINDOW = 32
SHIFT_TASKS = 3
SHIFT = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """CPUs, GPUs and bytes of memory: what a replica holds, or what is free on a node."""

    num_cpus: float = 0.0
    num_gpus: float = 0.0
    memory_bytes: float = 0.0

    def holds(self, other: Resources) -> bool:
        slack = 1e-9
        return (
            other.num_cpus <= self.num_cpus + slack
            and other.num_gpus <= self.num_gpus + slack
            and other.memory_bytes <= self.memory_bytes + slack
        )

    def is_like(self, other: Resources) -> bool:
        """Whether both are the same to Ray, which counts in ten thousandths."""
        return (
            math.isclose(self.num_cpus, other.num_cpus, abs_tol=2e-4)
            and math.isclose(self.num_gpus, other.num_gpus, abs_tol=2e-4)
            and math.isclose(self.memory_bytes, other.memory_bytes, abs_tol=1.0)
        )

    def plus(self, other: Resources) -> Resources:
        return Resources(
            num_cpus=self.num_cpus + other.num_cpus,
            num_gpus=self.num_gpus + other.num_gpus,
            memory_bytes=self.memory_bytes + other.memory_bytes,
        )

    def less(self, other: Resources) -> Resources:
        return Resources(
            num_cpus=self.num_cpus - other.num_cpus,
            num_gpus=self.num_gpus - other.num_gpus,
            memory_bytes=self.memory_bytes - other.memory_bytes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StageLoad:
    """A stage as it was measured.

    ``work_s`` is the replica time that one row of the source costs in this stage, None before it is known. ``is_over``: all
    its rows are through. ``is_awaited``: nothing is known of it yet, and its first rows wait or are being taken. Of its
    replicas ``num_unplaced`` wait for a place that no node has: what was lost with a node may be held by other stages now.
    """

    stage: str
    needs: Resources
    num_replicas: int
    min_replicas: int = 1
    max_replicas: int = 1
    work_s: float | None = None
    is_over: bool = False
    is_awaited: bool = False
    num_unplaced: int = 0

    def rate(self, num_replicas: int) -> float:
        """Source rows a second with so many replicas."""
        return num_replicas / self.work_s if self.work_s else math.inf


def plan(loads: Sequence[StageLoad], nodes: Sequence[Resources]) -> dict[str, int]:
    """Give the number of replicas of each stage.

    Args:
        loads: of all stages; one whose work is unknown keeps what it has, or gets its least where it has lost some of that; so
            do all while one is awaited, since those before it would take what it is going to need.
        nodes: what this pipeline may use of each node, its own replicas included.
    """
    packing = _Packing(nodes)
    is_early = any(load.is_awaited for load in loads)
    counts = {load.stage: 0 for load in loads}
    # Where there is not room for all, one of each stage comes first: without it no row is through.
    for most in (1, None):
        for load in loads:
            kept = load.num_replicas if is_early or load.work_s is None else 0
            floor = 0 if load.is_over else max(load.min_replicas, kept)
            more = min(floor, most or floor) - counts[load.stage]
            counts[load.stage] += packing.place(load.needs, max(0, more))
    growing = [load for load in loads if not load.is_over and load.work_s and not is_early]
    while growing:
        slowest = min(growing, key=lambda load: load.rate(counts[load.stage]))
        if counts[slowest.stage] >= slowest.max_replicas or not packing.place(slowest.needs, 1):
            break
        counts[slowest.stage] += 1
    return counts


def decide(
    loads: Sequence[StageLoad], nodes: Sequence[Resources], *, rows_left: float = math.inf, start_s: float = 0.0
) -> list[Scale]:
    """Say which stages to scale: those of a plan that is worth its cost.

    Args:
        loads: of all stages.
        nodes: what this pipeline may use of each node.
        rows_left: source rows that are not through, infinite where that is unknown.
        start_s: how long a replica takes to start; a plan that saves less moves nothing.
    """
    wanted = plan(loads, nodes)
    now, then = rate(loads, {load.stage: load.num_replicas for load in loads}), rate(loads, wanted)
    is_short = any((load.num_replicas < load.min_replicas or load.num_unplaced) and not load.is_over for load in loads)
    is_worthwhile = then >= now * WORTHWHILE and (now == 0 or rows_left / now - rows_left / then > start_s or math.isinf(rows_left))
    slowest = min(
        (load for load in loads if load.work_s and not load.is_over), key=lambda each: each.rate(each.num_replicas), default=None
    )
    decisions = []
    for load in loads:
        target = wanted[load.stage]
        if load.num_unplaced:  # what a stage cannot do without stays asked for: a cluster may get nodes for it
            target = max(target, min(load.num_replicas, load.min_replicas))
        if target == load.num_replicas or not (load.is_over or is_worthwhile or is_short):
            continue
        if slowest is None or load.is_over:
            reason = "all its rows are through"
        elif target > load.num_replicas:
            reason = f"{now:.3g} source rows/s, {then:.3g} expected"
        else:
            reason = f"{slowest.stage} is slower and needs what it holds"
        decisions.append(Scale(stage=load.stage, num_replicas=target, reason=reason))
    return decisions


def rate(loads: Iterable[StageLoad], counts: dict[str, int]) -> float:
    """Give the source rows a second of a pipeline with so many replicas of each stage."""
    return min((load.rate(counts[load.stage]) for load in loads if load.work_s and not load.is_over), default=math.inf)


class _Packing:
    """Replicas on whole nodes: each on the node that it leaves the least of, and CPUs without a GPU where most are beside one."""

    def __init__(self, nodes: Sequence[Resources]) -> None:
        self._free = list(nodes)

    def place(self, needs: Resources, count: int) -> int:
        """Place up to ``count`` and say how many found a node."""
        for placed in range(count):
            fitting = [place for place, free in enumerate(self._free) if free.holds(needs)]
            if not fitting:
                return placed
            best = min(fitting, key=lambda place: _left(self._free[place], needs))
            self._free[best] = self._free[best].less(needs)
        return count


def _left(free: Resources, needs: Resources) -> tuple[float, float]:
    """Say what a node would be left with, as far as it matters to others: a GPU is worth nothing without a CPU beside it."""
    if needs.num_gpus or not free.num_gpus:
        return free.num_gpus, free.num_cpus
    return math.inf, -free.num_cpus / free.num_gpus


class Cost:
    """What a row costs a stage, from its last tasks: their mean, and after a shift the mean since the shift.

    A shift is ``SHIFT_TASKS`` tasks in a row that all cost more than ``SHIFT`` times the median before them, or less than
    its inverse: a mean alone would take as long to follow as its window is wide, a median alone be wrong where costs have
    a heavy tail.
    """

    def __init__(self) -> None:
        self._tasks: deque[tuple[float, float]] = deque(maxlen=WINDOW)

    def add(self, rows: float, busy_s: float) -> None:
        """Count a task."""
        if rows <= 0:
            return
        self._tasks.append((rows, busy_s))
        if len(self._tasks) > 2 * SHIFT_TASKS:
            cut = len(self._tasks) - SHIFT_TASKS
            before = median(busy / rows for rows, busy in islice(self._tasks, cut))
            latest = [busy / rows for rows, busy in islice(self._tasks, cut, None)]
            if min(latest) > before * SHIFT or max(latest) < before / SHIFT:
                self._tasks = deque(islice(self._tasks, cut, None), maxlen=WINDOW)

    @property
    def per_row_s(self) -> float | None:
        """Seconds a row, None before the first task."""
        rows = sum(rows for rows, _ in self._tasks)
        return sum(busy_s for _, busy_s in self._tasks) / rows if rows else None
