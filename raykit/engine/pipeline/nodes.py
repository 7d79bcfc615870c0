"""What the nodes of the cluster have free."""

from __future__ import annotations

from collections.abc import Iterable

from raykit.policy.balance import Resources


def free_nodes(held: Iterable[tuple[str, Resources]]) -> list[Resources]:
    """Give what each node has free, together with what is ``held`` on it: (node id, resources)."""
    from ray._private.state import available_resources_per_node

    free = {
        node_id: Resources(num_cpus=each.get("CPU", 0.0), num_gpus=each.get("GPU", 0.0), memory_bytes=each.get("memory", 0.0))
        for node_id, each in available_resources_per_node().items()
    }
    for node_id, each in held:
        if node_id in free:
            free[node_id] = free[node_id].plus(each)
    return list(free.values())
