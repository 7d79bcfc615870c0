"""What would make a pipeline faster than it is allowed to be, and by how much.

What a change gives is computed where the plan tells it (limits, what a replica holds), and tried on a few calls where only
the user's code can tell it (larger batches, more calls at once, fewer threads): the expected gain is a measured one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from raykit.decisions import Advise, StageChange, Try
from raykit.policy.balance import Resources, StageLoad, plan, rate

WORTH_SAYING = 1.1
NO_LIMIT = 10_000
MOST_DOUBLINGS = 4
CROWDED = 1.5  # threads that want to run for each CPU that is held
HALF = 0.5  # who uses less of what it holds could hold less
SPARE = 1.25  # of what was used, for the calls that use more
LEAST_CPUS = 0.1
GPU_STEP = 0.05
MEMORY_STEP_BYTES = 100_000_000

Limit = Literal["source", "sink"]
Tried = Mapping[StageChange, float | None]
"""What a row of the source costs a stage with a change, in replica seconds; None where the change failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageUse:
    """A stage as it is asked to work, and what its calls showed, None before they did.

    ``used_cpus`` and ``used_gpus`` are those a replica kept at work on average while it worked, ``wanted_cpus`` its threads
    that ran or waited for a CPU, ``gpu_memory_share`` the most memory that it held of its GPUs, in memories of one.
    ``can_overlap``: its calls may be made at once (it is async, or was asked for).
    """

    load: StageLoad
    batch_size: int | None = None
    concurrency: int = 1
    can_overlap: bool = False
    used_cpus: float | None = None
    wanted_cpus: float | None = None
    peak_memory_bytes: int | None = None
    used_gpus: float | None = None
    gpu_memory_share: float | None = None


def advise(
    stages: Sequence[StageUse], nodes: Sequence[Resources], *, tried: Tried, rows_s: float, limit: Limit | None = None
) -> Advise | Try | None:
    """Say what holds a pipeline up, or what is to be tried first; None before all is measured, or when nothing does.

    Args:
        stages: all of them, with the limits that they have now.
        nodes: what this pipeline may use of each node.
        tried: what is known of changes.
        rows_s: source rows that come through each second.
        limit: what is slower than every stage.
    """
    living = [stage for stage in stages if not stage.load.is_over]
    loads = [stage.load for stage in living]
    if not loads or any(stage.load.work_s is None or stage.used_cpus is None for stage in living):
        return None
    now, within = rate(loads, {load.stage: load.num_replicas for load in loads}), rate(loads, plan(loads, nodes))
    if limit is not None:
        reason = "the source gives fewer rows than the stages could take" if limit == "source" else "rows are written too slowly"
        return Advise(changes=(), rows_s=rows_s, expected_rows_s=within, reason=reason)
    if within > now * WORTH_SAYING:
        return None  # the balance is about to do it
    slowest = min(living, key=lambda stage: stage.load.rate(stage.load.num_replicas))
    wish = next(_untried(slowest, tried), None)
    if wish is not None:
        return Try(change=wish)
    found = [
        *_limits(loads, nodes, now),
        *_tried(slowest, loads, nodes, tried),
        *_smaller(living, loads, nodes),
        *_split(slowest, loads, nodes),
    ]
    best = max(found, key=lambda advice: advice.expected_rows_s, default=None)
    if best is not None and best.expected_rows_s > now * WORTH_SAYING:
        return replace(best, rows_s=now)
    return _more_machines(slowest.load, loads, nodes, now)


def _limits(loads: Sequence[StageLoad], nodes: Sequence[Resources], now: float) -> Iterator[Advise]:
    """Let stages have as many replicas as the cluster holds."""
    wanted = plan([replace(load, min_replicas=1, max_replicas=NO_LIMIT) for load in loads], nodes)
    changes = tuple(
        StageChange(
            stage=load.stage,
            min_replicas=min(load.min_replicas, wanted[load.stage]),
            max_replicas=max(load.max_replicas, wanted[load.stage]),
        )
        for load in loads
        if not load.min_replicas <= wanted[load.stage] <= load.max_replicas
    )
    slowest = min(loads, key=lambda load: load.rate(load.num_replicas))
    if changes:
        reason = f"{slowest.stage} is the bottleneck with {slowest.num_replicas} replicas, and the cluster has more for it"
        yield Advise(changes=changes, rows_s=now, expected_rows_s=rate(loads, wanted), reason=reason)


def _untried(slowest: StageUse, tried: Tried) -> Iterator[StageChange]:
    """Give what is not known yet of the bottleneck: only there a change of its calls can help."""
    for steps in _ladders(slowest):
        best = slowest.load.work_s or 0.0
        for change in steps:
            if change not in tried:
                yield change
                break
            work_s = tried[change]
            if work_s is None or work_s * WORTH_SAYING > best:
                break
            best = work_s


def _tried(slowest: StageUse, loads: Sequence[StageLoad], nodes: Sequence[Resources], tried: Tried) -> Iterator[Advise]:
    """Give what trials have shown to help."""
    for steps in _ladders(slowest):
        known = [(work_s, change) for change in steps if (work_s := tried.get(change)) is not None]
        if known:
            work_s, change = min(known, key=lambda each: each[0])
            yield _advice(change, _why(change, slowest), replace(slowest.load, work_s=work_s), loads, nodes)


def _ladders(stage: StageUse) -> Iterator[list[StageChange]]:
    """Give the changes of a stage's calls that make sense, each kind in the order in which it is tried."""
    name, cpus = stage.load.stage, max(1.0, stage.load.needs.num_cpus)
    if stage.wanted_cpus is not None and stage.wanted_cpus > CROWDED * cpus:
        yield [StageChange(stage=name, num_threads=int(cpus))]
    if stage.batch_size is not None:
        yield [StageChange(stage=name, batch_size=stage.batch_size * 2**power) for power in range(1, 1 + MOST_DOUBLINGS)]
    if stage.can_overlap and stage.used_cpus is not None and stage.used_cpus < HALF * cpus:
        yield [StageChange(stage=name, concurrency=stage.concurrency * 2**power) for power in range(1, 1 + MOST_DOUBLINGS)]


def _why(change: StageChange, stage: StageUse) -> str:
    name = change.stage
    if change.num_threads is not None:
        return f"{name} wants {stage.wanted_cpus:.1f} CPUs for its threads and holds {stage.load.needs.num_cpus:g}"
    if change.batch_size is not None:
        return f"{name} is the bottleneck, and a row costs it less in a larger batch"
    return f"{name} is the bottleneck, and its calls wait rather than compute"


def _smaller(stages: Sequence[StageUse], loads: Sequence[StageLoad], nodes: Sequence[Resources]) -> Iterator[Advise]:
    """Let stages hold what they use, so that there is room for more replicas."""
    for stage in stages:
        name, needs = stage.load.stage, stage.load.needs
        if stage.used_cpus is not None and stage.used_cpus < HALF * needs.num_cpus:
            cpus = max(LEAST_CPUS, math.ceil(stage.used_cpus * SPARE * 10) / 10)
            reason = f"{name} holds {needs.num_cpus:g} CPUs and uses {stage.used_cpus:.2f}"
            less = replace(stage.load, needs=replace(needs, num_cpus=cpus))
            yield _advice(StageChange(stage=name, num_cpus=cpus), reason, less, loads, nodes)
        if stage.peak_memory_bytes is not None and stage.peak_memory_bytes < HALF * needs.memory_bytes:
            memory = math.ceil(stage.peak_memory_bytes * SPARE / MEMORY_STEP_BYTES) * MEMORY_STEP_BYTES
            reason = f"{name} holds {needs.memory_bytes / 1e9:.1f} GB and used {stage.peak_memory_bytes / 1e9:.1f} at most"
            less = replace(stage.load, needs=replace(needs, memory_bytes=memory))
            yield _advice(StageChange(stage=name, memory_bytes=memory), reason, less, loads, nodes)
        if stage.used_gpus is not None and stage.gpu_memory_share is not None:
            wanted = max(stage.used_gpus, stage.gpu_memory_share) * SPARE
            gpus = math.ceil(wanted) if wanted > 1 else round(max(1, math.ceil(wanted / GPU_STEP)) * GPU_STEP, 2)
            if gpus <= HALF * needs.num_gpus:
                used = f"keeps {stage.used_gpus:.2f} at work, with {stage.gpu_memory_share:.0%} of a GPU's memory"
                less = replace(stage.load, needs=replace(needs, num_gpus=gpus))
                change = StageChange(stage=name, num_gpus=gpus)
                yield _advice(change, f"{name} holds {needs.num_gpus:g} GPUs and {used}", less, loads, nodes)


def _split(slowest: StageUse, loads: Sequence[StageLoad], nodes: Sequence[Resources]) -> Iterator[Advise]:
    """Have what the bottleneck computes on CPUs done by a stage of its own, while others use the GPU that it holds."""
    load, needs = slowest.load, slowest.load.needs
    if not needs.num_gpus or slowest.used_gpus is None or load.work_s is None or (slowest.used_cpus or 0.0) < HALF:
        return
    on_gpus = slowest.used_gpus / needs.num_gpus
    if on_gpus < HALF:
        first = replace(
            load,
            stage=f"{load.stage} on CPUs",
            work_s=load.work_s * (1 - on_gpus),
            needs=replace(needs, num_gpus=0.0),
            min_replicas=1,
        )
        second = replace(load, work_s=load.work_s * on_gpus, min_replicas=1)
        others = [each for each in loads if each.stage != load.stage]
        parted = [*others, replace(first, max_replicas=NO_LIMIT), second]
        reason = f"{load.stage} computes on CPUs for {1 - on_gpus:.0%} of its time with a GPU in hand: make that a stage of its own"
        yield Advise(changes=(), rows_s=0.0, expected_rows_s=rate(parted, plan(parted, nodes)), reason=reason)


def _advice(change: StageChange, reason: str, changed: StageLoad, loads: Sequence[StageLoad], nodes: Sequence[Resources]) -> Advise:
    """Plan with a stage that costs, or holds, something else."""
    others = [changed if load.stage == changed.stage else load for load in loads]
    return Advise(changes=(change,), rows_s=0.0, expected_rows_s=rate(others, plan(others, nodes)), reason=reason)


def _more_machines(slowest: StageLoad, loads: Sequence[StageLoad], nodes: Sequence[Resources], now: float) -> Advise | None:
    free = [replace(load, min_replicas=1, max_replicas=NO_LIMIT) for load in loads]
    larger = rate(loads, plan(free, [*nodes, slowest.needs]))
    if larger < now * (1 + 1e-6):
        return None
    needs = f"{slowest.needs.num_cpus:g} CPUs" + (f" and {slowest.needs.num_gpus:g} GPUs" if slowest.needs.num_gpus else "")
    reason = f"{slowest.stage} is the bottleneck and the cluster is full, {needs} more would help"
    return Advise(changes=(), rows_s=now, expected_rows_s=larger, reason=reason)
