"""What is said of a cluster: figures, a map of its GPUs, who waits, and its nodes in rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from raykit.events import GpuUse
from raykit.render.face import size
from raykit.render.nodes import DOMAIN_HEADERS, NODE_HEADERS, Row, cells_of, domain_rows, node_rows, rows_of
from raykit.views import ClusterView, NodeView

DOMAIN_LABELS = ("raykit.io/rack", "topology.kubernetes.io/zone", "ray.io/availability-zone")
MAX_NODES_LISTED = 24  # a cluster of more is told by its racks or zones, and a node when it is asked for
NOBODY, NOBODY_KNOWS = "nobody", "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeBlock:
    """A node on the map: a cell for each of its GPUs, or where it has none a single one for its CPUs."""

    name: str
    num_cells: int
    has_gpus: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """Nodes of one rack or zone; without labels there is one, with no name."""

    name: str
    nodes: tuple[NodeBlock, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFace:
    """A cluster as a person sees it.

    ``percents`` and ``owner_of`` have an entry for each cell of the map, in the order of domains, nodes and GPUs: the share
    of time at work, and who uses it, by place in ``owners``, of which the first is nobody.
    """

    name: str
    figures: tuple[tuple[str, str], ...]
    labels: tuple[str, ...]
    waiting: tuple[tuple[str, str, str], ...]
    domains: tuple[Domain, ...]
    percents: tuple[int, ...]
    owners: tuple[str, ...]
    owner_of: tuple[int, ...]
    node: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def cluster_face(view: ClusterView, node: str = "") -> ClusterFace:
    """Put a view into words, with the rows of one node if it is named."""
    racks = _domains(view)
    nodes = list(chain.from_iterable(racks.values()))
    cells = [cell for each in nodes for cell in cells_of(each)]
    owned = [_owner(gpu) for _, gpu in cells]
    owners = (NOBODY, *sorted(set(owned) - {NOBODY}))
    place = {owner: at for at, owner in enumerate(owners)}
    blocks = {each.node: _block(each) for each in nodes}
    headers, rows = _table(view, racks, node)
    return ClusterFace(
        name=view.name,
        figures=tuple(_figures(view, [percent for percent, gpu in cells if gpu is not None])),
        labels=tuple(_labels(view)),
        waiting=tuple((each.run, each.run_kind, each.reason) for each in view.waiting),
        domains=tuple(Domain(name=name, nodes=tuple(blocks[each.node] for each in those)) for name, those in racks.items()),
        percents=tuple(percent for percent, _ in cells),
        owners=owners,
        owner_of=tuple(place[owner] for owner in owned),
        node=node,
        headers=headers,
        rows=tuple(tuple("unknown" if cell is None else cell for cell in row) for row in rows),
    )


def _table(view: ClusterView, racks: dict[str, list[NodeView]], node: str) -> tuple[tuple[str, ...], list[Row]]:
    """Give one node's rows, or all nodes', or those of racks and zones where nodes are many."""
    if asked := [each for each in view.nodes if each.node == node]:
        return NODE_HEADERS, list(rows_of(asked[0], simulated=view.simulated_gpus))
    if len(view.nodes) > MAX_NODES_LISTED:
        return DOMAIN_HEADERS, list(domain_rows(racks))
    return NODE_HEADERS, list(node_rows(view))


def _domains(view: ClusterView) -> dict[str, list[NodeView]]:
    domains: dict[str, list[NodeView]] = {}
    for node in view.nodes:
        name = next((node.labels[label] for label in DOMAIN_LABELS if label in node.labels), "")
        domains.setdefault(name, []).append(node)
    return dict(sorted(domains.items(), key=lambda domain: _natural(domain[0])))


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort ``rack 10`` after ``rack 9``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _block(node: NodeView) -> NodeBlock:
    cells = cells_of(node)
    return NodeBlock(name=node.node, num_cells=len(cells), has_gpus=cells[0][1] is not None)


def _owner(gpu: GpuUse | None) -> str:
    """Name the runs that use a GPU."""
    if gpu is None:
        return NOBODY
    if gpu.users is None:
        return NOBODY_KNOWS
    runs = dict.fromkeys("other processes" if user.startswith("process ") else user.split()[0] for user in gpu.users)
    return ", ".join(runs) or NOBODY


def _figures(view: ClusterView, percents: Sequence[int]) -> Iterator[tuple[str, str]]:
    yield "nodes", f"{sum(node.alive for node in view.nodes):,} of {len(view.nodes):,} up"
    if percents:
        known = [percent for percent in percents if percent >= 0]
        missing = len(percents) - len(known)
        aside = f", {missing:,} unknown" if missing else ""
        yield "GPUs at work", f"{sum(known) / 100:,.1f} of {len(percents):,}{aside}" if known else "unknown"
        yield "GPU slots free", f"{view.num_gpus_free:,g} of {view.num_gpus:,g}"
    yield "CPU slots free", f"{view.num_cpus_free:,g} of {view.num_cpus:,g}"
    uses = [node.use for node in view.nodes if node.use is not None and node.alive]
    if uses:
        yield "memory", f"{size(sum(use.memory_used_bytes for use in uses))} of {size(sum(use.memory_bytes for use in uses))}"
    yield "object store", size(view.object_store_bytes)


def _labels(view: ClusterView) -> Iterator[str]:
    if view.guard:
        yield view.guard
    if view.simulated_gpus:
        yield "GPUs of this cluster are simulated"
