"""What is said of a cluster: each node and each GPU with its use. What is unknown is None."""

from __future__ import annotations

from collections.abc import Iterator

from raykit.events import GpuUse
from raykit.render.face import size
from raykit.views import ClusterView, NodeView

NODE_HEADERS = ("node", "state", "CPU slots", "GPU slots", "at work", "memory", "power and heat", "used by")

Row = tuple[str | None, ...]


def node_rows(view: ClusterView) -> Iterator[Row]:
    """Give the cells of a row for each node and each of its GPUs, and of one for all."""
    simulated = " (simulated)" if view.simulated_gpus else ""
    for node in view.nodes:
        slots = f"{node.num_cpus:g}", f"{node.num_gpus:g}{simulated if node.num_gpus else ''}"
        yield (node.node, "up" if node.alive else "gone", *slots, *_machine(node))
        if node.use is not None and node.use.gpus is None:
            yield ("  its GPUs", f"unknown: {node.use.fault}", *[""] * 6)
        for gpu in (node.use.gpus if node.use else None) or ():
            yield (f"  GPU {gpu.gpu}" + (f" {gpu.name}" if gpu.name else ""), _state(gpu), "", "", *_gpu(gpu))
    if view.guard:
        yield ("guard", view.guard, *[""] * 6)
    free = f"{view.num_cpus_free:g} of {view.num_cpus:g} CPU slots free"
    yield ("all", free, f"{view.num_cpus:g}", f"{view.num_gpus:g}", "", "", "", "")


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
