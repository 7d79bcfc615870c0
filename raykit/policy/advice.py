"""What would make a pipeline faster than its limits allow, and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from raykit.decisions import Advise, StageLimits
from raykit.policy.balance import Resources, StageLoad, plan, rate

WORTH_SAYING = 1.1
NO_LIMIT = 10_000


def advise(loads: Sequence[StageLoad], nodes: Sequence[Resources], *, is_source_slow: bool = False) -> Advise | None:
    """Say which limits hold a pipeline up, None before all stages are measured or when nothing does.

    Args:
        loads: of all stages, with the limits that they have now.
        nodes: what this pipeline may use of each node.
        is_source_slow: every stage waits for rows.
    """
    living = [load for load in loads if not load.is_over]
    if not living or any(load.work_s is None for load in living):
        return None
    now = rate(living, {load.stage: load.num_replicas for load in living})
    slowest = min(living, key=lambda load: load.rate(load.num_replicas))
    if is_source_slow:
        reason = "every stage waits for rows: the source gives fewer than they could take"
        return Advise(changes=(), rows_s=now, expected_rows_s=now, reason=reason)
    within = rate(living, plan(living, nodes))
    free = [replace(load, min_replicas=1, max_replicas=NO_LIMIT) for load in living]
    wanted = plan(free, nodes)
    then = rate(living, wanted)
    changes = tuple(
        StageLimits(
            stage=load.stage,
            min_replicas=min(load.min_replicas, wanted[load.stage]),
            max_replicas=max(load.max_replicas, wanted[load.stage]),
        )
        for load in living
        if not load.min_replicas <= wanted[load.stage] <= load.max_replicas
    )
    if changes and then >= max(within, now) * WORTH_SAYING:
        reason = f"{slowest.stage} is the bottleneck with {slowest.num_replicas} replicas, and the cluster has more for it"
        return Advise(changes=changes, rows_s=now, expected_rows_s=then, reason=reason)
    if within > now * WORTH_SAYING:
        return None  # the balance is about to do it
    larger = rate(living, plan(free, [*nodes, slowest.needs]))
    if larger < now * (1 + 1e-6):
        return None
    needs = f"{slowest.needs.num_cpus:g} CPUs" + (f" and {slowest.needs.num_gpus:g} GPUs" if slowest.needs.num_gpus else "")
    reason = f"{slowest.stage} is the bottleneck and the cluster is full, {needs} more would help"
    return Advise(changes=(), rows_s=now, expected_rows_s=larger, reason=reason)
