"""What the nodes of the cluster have free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from raykit.policy.balance import Resources


def free_nodes() -> dict[str, Resources]:
    """Give what each node has free, by its id."""
    from ray._private.state import available_resources_per_node

    return {
        node_id: Resources(num_cpus=each.get("CPU", 0.0), num_gpus=each.get("GPU", 0.0), memory_bytes=each.get("memory", 0.0))
        for node_id, each in available_resources_per_node().items()
    }


def with_held(free: Mapping[str, Resources], held: Iterable[tuple[str, Resources]]) -> list[Resources]:
    """Give what each node has free, together with what is ``held`` on it: (node id, resources)."""
    nodes = dict(free)
    for node_id, each in held:
        if node_id in nodes:
            nodes[node_id] = nodes[node_id].plus(each)
    return list(nodes.values())
