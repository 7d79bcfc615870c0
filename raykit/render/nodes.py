"""Nodes, GPUs, racks and zones in rows, and the cells that stand for them on a cluster's map. What is unknown is None."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean

from raykit.events import GpuUse
from raykit.render.face import size
from raykit.views import ClusterView, NodeView

NODE_HEADERS = ("node", "state", "CPU slots", "GPU slots", "at work", "memory", "power and heat", "used by")
DOMAIN_HEADERS = ("where", "nodes up", "GPUs", "at work", "idle", "unknown")

UNKNOWN, FAULT = -1, -2
"""What a cell has in place of its percents: nobody knows, or it is gone or broken."""
IDLE_PERCENT = 5

Row = tuple[str | None, ...]
Cell = tuple[int, GpuUse | None]
"""Percents of time at work, and what the driver tells of the GPU; None stands for the CPUs of a node that has no GPU."""


def node_rows(view: ClusterView) -> Iterator[Row]:
    """Give the cells of a row for each node and each of its GPUs, and of one for all."""
    for node in view.nodes:
        yield from rows_of(node, simulated=view.simulated_gpus)
    if view.guard:
        yield ("guard", view.guard, *[""] * 6)
    free = f"{view.num_cpus_free:g} of {view.num_cpus:g} CPU slots free"
    yield ("all", free, f"{view.num_cpus:g}", f"{view.num_gpus:g}", "", "", "", "")


def rows_of(node: NodeView, *, simulated: bool) -> Iterator[Row]:
    """Give the cells of a row for a node and for each of its GPUs."""
    slots = f"{node.num_cpus:g}", f"{node.num_gpus:g}{' (simulated)' if simulated and node.num_gpus else ''}"
    yield (node.node, "up" if node.alive else "gone", *slots, *_machine(node))
    if node.use is not None and node.use.gpus is None:
        yield ("  its GPUs", f"unknown: {node.use.fault}", *[""] * 6)
    for gpu in (node.use.gpus if node.use else None) or ():
        yield (f"  GPU {gpu.gpu}" + (f" {gpu.name}" if gpu.name else ""), _state(gpu), "", "", *_gpu(gpu))


def domain_rows(domains: Mapping[str, Sequence[NodeView]]) -> Iterator[Row]:
    """Give the cells of a row for each rack or zone."""
    for name, nodes in domains.items():
        percents = [percent for node in nodes for percent, gpu in cells_of(node) if gpu is not None]
        known = [percent for percent in percents if percent >= 0]
        up = sum(node.alive for node in nodes)
        idle = sum(percent < IDLE_PERCENT for percent in known)
        at_work = f"{fmean(known):.0f}%" if known else None
        yield (
            name or "all",
            f"{up:,} of {len(nodes):,}",
            f"{len(percents):,}",
            at_work,
            f"{idle:,}",
            f"{len(percents) - len(known):,}",
        )


def cells_of(node: NodeView) -> list[Cell]:
    """Give a cell for each GPU of a node, or one for its CPUs."""
    gpus = _whole(node.use.gpus) if node.use is not None and node.use.gpus is not None else []
    if not gpus:
        gpus = [GpuUse(gpu=str(place)) for place in range(int(node.num_gpus))]
    if not node.alive:
        return [(FAULT, gpu) for gpu in gpus] or [(FAULT, None)]
    return [(_percent(gpu), gpu) for gpu in gpus] or [(_cpu_percent(node), None)]


def _whole(gpus: Iterable[GpuUse]) -> list[GpuUse]:
    """Leave out a GPU that MIG has cut into instances, which stand for it."""
    cut = {gpu.gpu.partition(":")[0] for gpu in gpus if ":" in gpu.gpu}
    return [gpu for gpu in gpus if gpu.gpu not in cut]


def _percent(gpu: GpuUse) -> int:
    if gpu.fault:
        return FAULT
    return UNKNOWN if gpu.utilization is None else round(100 * gpu.utilization)


def _cpu_percent(node: NodeView) -> int:
    if node.use is None or not node.num_cpus:
        return UNKNOWN
    return min(100, round(100 * node.use.num_cpus / node.num_cpus))


def _machine(node: NodeView) -> Row:
    if node.use is None:
        return None, None, "", ""
    return f"{node.use.num_cpus:.3g} cores", _amount(node.use.memory_used_bytes, node.use.memory_bytes), "", ""


def _state(gpu: GpuUse) -> str:
    return gpu.fault or ", ".join(("up", *(f"slowed by {reason}" for reason in gpu.throttled_by or ())))


def _gpu(gpu: GpuUse) -> Row:
    drawn = [f"{gpu.power_w:.0f} W"] if gpu.power_w is not None else []
    heat = [f"{gpu.temperature_c:.0f} °C"] if gpu.temperature_c is not None else []
    return (
        None if gpu.utilization is None else f"{gpu.utilization:.0%}",
        _amount(gpu.memory_used_bytes, gpu.memory_bytes),
        ", ".join(drawn + heat) or None,
        None if gpu.users is None else ", ".join(gpu.users) or "nobody",
    )


def _amount(used_bytes: int | None, num_bytes: int | None) -> str | None:
    return None if used_bytes is None or num_bytes is None else f"{size(used_bytes)} of {size(num_bytes)}"
