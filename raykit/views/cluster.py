"""A cluster as it stands: its nodes, what they hold, and what their machines use."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from raykit import events as ev


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """A Ray node: its logical slots, and what its machine used when it was sampled last; None before it was."""

    node: str
    alive: bool
    num_cpus: float
    num_gpus: float
    labels: dict[str, str] = field(default_factory=dict)
    use: ev.NodeSampled | None = None
    sampled_at_unix_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingView:
    """A run that waits, and what for."""

    run: str
    run_kind: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterView:
    """The nodes of a cluster, its slots in all, and the runs that wait. Slots are logical: held, not used.

    ``guard`` says what the guard of a cluster that is paid for is about to do.
    """

    name: str
    simulated_gpus: bool
    nodes: tuple[NodeView, ...]
    num_cpus: float
    num_cpus_free: float
    num_gpus: float
    num_gpus_free: float
    object_store_bytes: int
    guard: str = ""
    waiting: tuple[WaitingView, ...] = ()


def fold_cluster(view: ClusterView, record: ev.Record) -> ClusterView:
    """Give the view after a record of the cluster itself; a sample that is older than what the view has changes nothing."""
    if not isinstance(record.event, ev.NodeSampled):
        return view
    sampled, at_unix_s = record.event, record.at_unix_s

    def sample(node: NodeView) -> NodeView:
        is_news = node.node == sampled.node and (node.sampled_at_unix_s or 0) <= at_unix_s
        return replace(node, use=sampled, sampled_at_unix_s=at_unix_s) if is_news else node

    return replace(view, nodes=tuple(map(sample, view.nodes)))
