"""What the cluster holds, and whether a run could ever fit."""

from __future__ import annotations

import ray

from raykit.engine.setting import ClusterSetting
from raykit.errors import CapacityError
from raykit.spec import PipelineSpec, RunSpec, ServiceSpec
from raykit.views import ClusterView, NodeView

Slot = tuple[float, float]


def check(spec: RunSpec, setting: ClusterSetting) -> None:
    """Refuse a run that the whole cluster could not hold, even when nothing else ran.

    Raises:
        CapacityError: what is asked and what is there.
    """
    _check_memory(spec, setting)
    nodes = [_slots_of(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    to_come = [setting.further_node] * len(spec.demand) if setting.further_node else []
    if fits(spec.demand, nodes + to_come):
        return
    cpus, gpus = sum(node[0] for node in nodes), sum(node[1] for node in nodes)
    asked_cpus, asked_gpus = sum(slot[0] for slot in spec.demand), sum(slot[1] for slot in spec.demand)
    problem = (
        f"{spec.name} asks for {asked_cpus:g} CPUs and {asked_gpus:g} GPUs in {len(spec.demand)} slots; "
        f"the cluster {setting.name} has {cpus:g} CPUs and {gpus:g} GPUs on {len(nodes)} nodes."
    )
    if asked_gpus and not gpus:
        raise CapacityError(problem, "Leave the GPUs out, or try it with slots that stand for them: %ray up sim --simulate-gpus 1")
    raise CapacityError(problem, "Ask for less, or make a larger cluster: %ray up NAME --cpus N")


def fitted(spec: RunSpec, setting: ClusterSetting) -> RunSpec:
    """Return the spec of a run as this cluster can hold it: the stages of a pipeline share its CPUs where it has fewer than stages.

    A stage that asks for more replicas than one, or for more than any node has, is left as it is, for :func:`check` to refuse.
    """
    if not isinstance(spec, PipelineSpec) or setting.further_node or any(stage.min_replicas > 1 for stage in spec.stages):
        return spec
    nodes = [_slots_of(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    if fits(spec.demand, nodes) or not all(fits((slot,), nodes) for slot in spec.demand):
        return spec
    for percent in range(99, 0, -1):
        shared = spec.with_cpu_share(percent / 100)
        if fits(shared.demand, nodes):
            return shared
    return spec


def _check_memory(spec: RunSpec, setting: ClusterSetting) -> None:
    """Refuse a stage whose replica no node has the memory for; a stage's memory is a resource of Ray like its CPUs."""
    largest = max((node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"]), default=0)
    stages = (spec.stage,) if isinstance(spec, ServiceSpec) else spec.stages if isinstance(spec, PipelineSpec) else ()
    for stage in stages:
        if stage.memory_bytes > largest:
            problem = f"A replica of {stage.name} asks for {stage.memory_bytes / 1e9:.3g} GB of memory"
            raise CapacityError(
                f"{problem}; the largest node of the cluster {setting.name} has {largest / 1e9:.3g} GB.", "Ask for less memory."
            )


def fits(demand: tuple[Slot, ...], nodes: list[Slot]) -> bool:
    """Say whether whole slots fit on whole nodes, the largest placed first."""
    free = [list(node) for node in nodes]
    for cpus, gpus in sorted(demand, key=lambda slot: (slot[1], slot[0]), reverse=True):
        node = next((node for node in free if node[0] >= cpus and node[1] >= gpus), None)
        if node is None:
            return False
        node[0] -= cpus
        node[1] -= gpus
    return True


def cluster_view(setting: ClusterSetting) -> ClusterView:
    """Give the cluster's nodes and slots, as Ray has them."""
    total, free = ray.cluster_resources(), ray.available_resources()
    nodes = tuple(
        NodeView(
            node=node["NodeID"][:8],
            alive=node["Alive"],
            num_cpus=node["Resources"].get("CPU", 0),
            num_gpus=node["Resources"].get("GPU", 0),
            labels=node.get("Labels", {}),
        )
        for node in ray.nodes()
    )
    return ClusterView(
        name=setting.name,
        simulated_gpus=setting.simulated_gpus,
        nodes=nodes,
        num_cpus=total.get("CPU", 0),
        num_cpus_free=free.get("CPU", 0),
        num_gpus=total.get("GPU", 0),
        num_gpus_free=free.get("GPU", 0),
        object_store_bytes=int(total.get("object_store_memory", 0)),
    )


def _slots_of(resources: dict[str, float]) -> Slot:
    return resources.get("CPU", 0), resources.get("GPU", 0)
