"""What the nodes of the cluster have free, and who waits for a place on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from raykit.policy.balance import Resources


def free_nodes() -> dict[str, Resources]:
    """Give what each node has free, by its id."""
    from ray._private.state import available_resources_per_node

    return {node_id: _resources(each) for node_id, each in available_resources_per_node().items()}


def unplaced() -> list[tuple[Resources, int]]:
    """Give what Ray was asked for and finds no place for: the needs, and how many have them. Who has a place is not in it."""
    from ray._private.worker import global_worker
    from ray.core.generated.autoscaler_pb2 import GetClusterResourceStateReply

    reply = GetClusterResourceStateReply.FromString(global_worker.gcs_client.get_cluster_resource_state())
    asked = [(each.request.resources_bundle, each.count) for each in reply.cluster_resource_state.pending_resource_requests]
    return [(_resources(bundle), count) for bundle, count in asked]


def with_held(free: Mapping[str, Resources], held: Iterable[tuple[str, Resources]]) -> list[Resources]:
    """Give what each node has free, together with what is ``held`` on it: (node id, resources)."""
    nodes = dict(free)
    for node_id, each in held:
        if node_id in nodes:
            nodes[node_id] = nodes[node_id].plus(each)
    return list(nodes.values())


def _resources(each: Mapping[str, float]) -> Resources:
    return Resources(num_cpus=each.get("CPU", 0.0), num_gpus=each.get("GPU", 0.0), memory_bytes=each.get("memory", 0.0))
