"""The clusters of a person, and which of them is the current one."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from raykit.client.cluster import Cluster, health_of
from raykit.cluster import record as records
from raykit.cluster.base import Plan, Told, refuse_difference
from raykit.cluster.home import clusters_home
from raykit.cluster.places import provider
from raykit.cluster.record import ClusterRecord, LocalRecord
from raykit.commands import Stop
from raykit.errors import (
    ClusterError,
    ClusterLostError,
    MissingPackageError,
    NoClusterError,
    OptionError,
    RunError,
    RunNameTakenError,
    RunNotFoundError,
)
from raykit.events import CLUSTER, RunAccepted
from raykit.spec import ClusterSpec
from raykit.spec.cluster import NodeGpus, Place
from raykit.spec.options import one_or_range
from raykit.spec.words import nearest_named, values_of
from raykit.store.log import Log
from raykit.views import ClusterView, RunView, fold

if TYPE_CHECKING:
    from raykit.client.doctor import Report
    from raykit.client.run import Run

_current: Cluster | None = None


def up(
    name: str = "local",
    *,
    on: Place | None = None,
    cpus: float | None = None,
    gpus: float | None = None,
    simulate_gpus: int | None = None,
    nodes: int | tuple[int, int] | str | None = None,
    dashboard: bool | None = None,
    object_store: int | str | None = None,
    sample_every: float | str | None = None,
    profile: Literal["standard", "small"] | None = None,
    hosts: Sequence[str] | str | None = None,
    key: str | None = None,
    ssh_config: str | None = None,
    python: str | None = None,
    machine: str | None = None,
    region: str | None = None,
    user: str | None = None,
    spot: bool | None = None,
    infra: str | None = None,
    gpus_per_node: str | int | NodeGpus | None = None,
    memory: int | str | None = None,
    image: str | None = None,
    namespace: str | None = None,
    context: str | None = None,
    kubeconfig: str | None = None,
    queue: str | None = None,
    tolerate: Sequence[str] | str | None = None,
    node_selector: Mapping[str, str] | str | None = None,
    together: str | None = None,
    service_account: str | None = None,
    labels: Mapping[str, str] | str | None = None,
    volumes: Mapping[str, str] | str | None = None,
    idle: float | str | None = None,
    idle_gpus: float | str | None = None,
    price: float | None = None,
    max_cost: float | str | None = None,
    budget: float | None = None,
    delete_after: float | str | None = None,
    **fields: Any,
) -> Cluster:
    """Return the cluster ``name``, started if it is not there; it outlives this process.

    The words are those of ``%ray up``, whose ``--help`` tells what each is for and where; texts are read as there
    (``idle="20m"``), so are the forms of Python: ``nodes=(0, 8)``, ``labels={"team": "vision"}``, ``hosts=["a", "b"]``.

    Args:
        name: how it is called.
        on: where it is: local, ssh, aws, gcp, sky, k8s or fake.
        cpus: CPU slots of each node.
        gpus: GPUs of each node.
        nodes: Ray nodes, or (least, most).
        idle: suspend it when nothing has run for so many seconds, or ``"20m"``; ``delete_after`` and ``sample_every`` alike.
        memory: bytes of each worker, or ``"16G"``; ``object_store`` alike.
        idle_gpus: share of a GPU, or ``"5%"``.
        max_cost: an hour, or ``"30/h"``.
        fields: names of the fields of :class:`raykit.spec.ClusterSpec`, such as ``num_cpus``, are understood too.

    Raises:
        OptionError: a wrong word (the nearest is named), a value that cannot be, or what this place does not know.
        ClusterDiffersError: it is up with other options.
        ClusterError: it cannot be made.
    """
    return up_spec(spec_of(name, **_given(locals())))


def up_spec(spec: ClusterSpec, *, told: Told = print) -> Cluster:
    """Give the cluster of ``spec`` and make it the current one; ``told`` hears what is waited for."""
    global _current  # noqa: PLW0603  (the current cluster is what a session is)
    _refuse_two_places(spec)
    started = Cluster(*provider(spec.place).up(spec, told=told))
    if _current is not None:
        _current.close()
    _current = started.mirror()
    return _current


def spec_of(name: str = "local", **options: Any) -> ClusterSpec:
    """Give the spec of what is asked: a cluster elsewhere that is known by this name is as it was where nothing is said."""
    known = records.find(name)
    if known is None or known.spec.place == "local" or options.get("place", known.spec.place) != known.spec.place:
        return ClusterSpec(name=name, **options)
    return replace(known.spec, **options)


def _given(words: dict[str, Any], command: str = "rk.up") -> dict[str, Any]:
    """Return the fields of the spec that a call's words mean: those that were given."""
    more = words.pop("fields")
    given = {word: value for word, value in words.items() if value is not None and word != "name"}
    return values_of(ClusterSpec, given | more, command=command)


def _refuse_two_places(spec: ClusterSpec) -> None:
    """Let no name stand for clusters in two places: who says it later could mean either."""
    found = records.find(spec.name)
    if found is not None and found.spec.place != spec.place and provider(found.spec.place).status(found).state != "gone":
        refuse_difference(found, spec)


def plan(
    name: str = "local",
    *,
    on: Place | None = None,
    cpus: float | None = None,
    gpus: float | None = None,
    simulate_gpus: int | None = None,
    nodes: int | tuple[int, int] | str | None = None,
    dashboard: bool | None = None,
    object_store: int | str | None = None,
    sample_every: float | str | None = None,
    profile: Literal["standard", "small"] | None = None,
    hosts: Sequence[str] | str | None = None,
    key: str | None = None,
    ssh_config: str | None = None,
    python: str | None = None,
    machine: str | None = None,
    region: str | None = None,
    user: str | None = None,
    spot: bool | None = None,
    infra: str | None = None,
    gpus_per_node: str | int | NodeGpus | None = None,
    memory: int | str | None = None,
    image: str | None = None,
    namespace: str | None = None,
    context: str | None = None,
    kubeconfig: str | None = None,
    queue: str | None = None,
    tolerate: Sequence[str] | str | None = None,
    node_selector: Mapping[str, str] | str | None = None,
    together: str | None = None,
    service_account: str | None = None,
    labels: Mapping[str, str] | str | None = None,
    volumes: Mapping[str, str] | str | None = None,
    idle: float | str | None = None,
    idle_gpus: float | str | None = None,
    price: float | None = None,
    max_cost: float | str | None = None,
    budget: float | None = None,
    delete_after: float | str | None = None,
    **fields: Any,
) -> Plan:
    """Return what :func:`up` with the same words would make; nothing is made.

    Raises:
        OptionError: as of :func:`up`.
    """
    return plan_spec(spec_of(name, **_given(locals(), command="rk.plan")))


def plan_spec(spec: ClusterSpec) -> Plan:
    """Say what :func:`up_spec` would make."""
    return provider(spec.place).plan(spec)


@nearest_named
def scale(
    name: str | None = None, nodes: int | tuple[int, int] | str = 0, *, num_nodes: int | tuple[int, int] | None = None
) -> Cluster:
    """Change a cluster's number of nodes: 3, or (2, 8) or ``"2:8"`` for as many as runs need.

    Args:
        name: of the cluster; the current one if not given.
        nodes: how many.
        num_nodes: the same.

    Raises:
        OptionError: no number was given.
        ClusterError: its place cannot have so many.
    """
    global _current  # noqa: PLW0603
    wanted = nodes if num_nodes is None else num_nodes
    num_nodes = one_or_range(wanted) if isinstance(wanted, str) else wanted
    if not num_nodes:
        raise OptionError("rk.scale: no number of nodes was given.", 'Write rk.scale("NAME", 3), or (2, 8).')
    cluster = get(name)
    scaled = Cluster(cluster.place.scale(cluster.record, num_nodes))
    if _current is not None and _current.name == scaled.name:
        _current.close()
        _current = scaled.mirror()
    return scaled


@nearest_named
def suspend(name: str | None = None) -> str:
    """Give a cluster's machines back and keep what brings it up again.

    Raises:
        ClusterError: its place has nothing to give back.
    """
    cluster = get(name)
    _bring_home(cluster.record)
    cluster.place.suspend(cluster.record)
    cluster.close()
    return f"Cluster {cluster.name} is suspended. Bring it back: %ray up {cluster.name}"


@nearest_named
def use(name: str) -> Cluster:
    """Make a cluster that is up the current one.

    Raises:
        NoClusterError: none of that name is up.
    """
    global _current  # noqa: PLW0603
    _current = get(name).mirror()
    return _current


def get(name: str | None = None) -> Cluster:
    """Give a cluster by name, or the current one, or the newest that is up.

    Raises:
        NoClusterError: it is not up; those that are up are named.
        ClusterLostError: it was the current one, and is gone or suspended.
    """
    if _current is not None and name in (None, _current.name) and records.find(_current.name) in (None, _current.record):
        health = _current.health()
        if health.state == "up":
            return _current
        raise ClusterLostError(
            f"The cluster {_current.name} is {health.state}: {health.why}.", f"Start it again: %ray up {_current.name}"
        )
    if name and (record := records.find(name)):
        named = Cluster(record)
        health = named.health()
        if health.state == "up":
            return named
        raise NoClusterError(f"The cluster {name} is {health.state}: {health.why}.", f"Start it again: %ray up {name}")
    alive = [cluster for cluster in clusters() if health_of(cluster).state == "up"]
    if alive and name is None:
        return alive[0]
    others = f"There are: {', '.join(cluster.name for cluster in alive)}." if alive else ""
    raise NoClusterError(
        f"No cluster {name} is up. {others}" if name else "No cluster is up.", f"Start one: %ray up {name or ''}".rstrip()
    )


def current_name() -> str | None:
    """Give the name of the current cluster, if one was used here."""
    return None if _current is None else _current.name


def clusters() -> list[Cluster]:
    """Give all clusters that are written down, the newest first; those whose head died say so."""
    return [Cluster(record) for record in records.find_all()]


@nearest_named
def down(name: str | None = None) -> str:
    """End a cluster (the current one if no name is given); its log and its runs stay. None to end is fine."""
    global _current  # noqa: PLW0603
    if name is None:
        name = _current.name if _current else next((record.name for record in records.find_all()), "local")
    found = records.find(name)
    if "ray" in sys.modules and isinstance(found, LocalRecord):
        from raykit.engine.connect import disconnect

        disconnect(found.gcs_address)
    if found is not None:
        _bring_home(found)
    was_there = provider(found.spec.place if found else "local").down(name)
    if _current is not None and _current.name == name:
        _current.close()
        _current = None
    return f"Cluster {name} is down; its runs are kept." if was_there else f"No cluster {name} is up; nothing to do."


def end_overdue(*, told: Told = print) -> None:
    """End the clusters that have been suspended for longer than their ``--delete-after``, and tell of each."""
    for cluster in clusters():
        if not cluster.is_overdue(time.time()):
            continue
        try:
            told(f"{down(cluster.name)} It was suspended for longer than its --delete-after.")
        except ClusterError as exc:
            told(f"{cluster.name} was suspended for longer than its --delete-after, and could not be ended. {exc}")


def _bring_home(record: ClusterRecord) -> None:
    """Keep what a cluster elsewhere tells last; one that is not reached any more tells nothing."""
    with suppress(ClusterError, MissingPackageError), closing(Cluster(record)) as cluster:
        cluster.mirror()


@nearest_named
def status(name: str | None = None) -> ClusterView:
    """Give the nodes of a cluster with their slots, and what their machines and GPUs use now."""
    return get(name).status()


@nearest_named
def runs(name: str | None = None) -> list[RunView]:
    """Give the runs of a cluster, newest first; of one that is gone, from its log."""
    try:
        return get(name).door.runs()
    except (NoClusterError, ClusterLostError):
        folder = records.cluster_folder(name or (_current.name if _current else "local"))
        return views_in_log(folder / "log.sqlite") if (folder / "log.sqlite").exists() else []


def views_in_log(path: Any) -> list[RunView]:
    """Fold the views of all runs from a log on disk, newest first.

    A name may stand for several: the log of a cluster elsewhere began anew when that was made anew.
    """
    views: dict[str, RunView] = {}
    earlier: list[RunView] = []
    with closing(Log(path)) as log:
        for record in log.read_all():
            if isinstance(record.event, RunAccepted) and not record.event.resumed and record.run in views:
                earlier.append(views.pop(record.run))
            if record.run != CLUSTER:
                views[record.run] = fold(views.get(record.run) or RunView(name=record.run), record)
    return sorted([*views.values(), *earlier], key=lambda view: view.accepted_at_unix_s or 0, reverse=True)


@nearest_named
def watch(name: str) -> Run:
    """Give a run by name, with all that was missed; ``digits`` means its newest."""
    from raykit.client.run import Run

    run = Run(get(), name)
    run.refresh()
    return run


@nearest_named
def stop(name: str) -> None:
    """Ask a run to end at its next commit or batch. One that is over stays as it is."""
    get().ask(lambda door: door.command(Stop(run=name)))


@nearest_named
def resume(name: str, *, on: str | None = None) -> Run:
    """Start a run that was stopped, failed or lost again, from its last checkpoint or its first row.

    Args:
        name: the run's; one that this cluster does not know is looked for in the person's other clusters.
        on: the cluster; the current one if not given.

    Raises:
        RunNotFoundError: no cluster of this person knows it.
        RunNameTakenError: it goes on in another cluster.
        RunError: it is done.
    """
    from raykit.client.run import Run

    cluster = get(on)
    try:
        return Run(cluster, cluster.tell(lambda door: door.resume(name)), is_full_name=True)
    except RunNotFoundError:
        folder = _folder_elsewhere(name, cluster.name)
        if folder is None:
            raise
        return Run(cluster, cluster.tell(lambda door: door.resume(name, folder=folder)), is_full_name=True)


def _folder_elsewhere(name: str, here: str) -> str | None:
    """Give the folder of the newest run of that name in another cluster, which may be down."""
    found: list[tuple[float, str, RunView]] = []
    for home in clusters_home().iterdir():
        if home.name != here and (home / "log.sqlite").exists():
            views = [view for view in views_in_log(home / "log.sqlite") if name in (view.name, view.name.partition("#")[0])]
            found += [(view.accepted_at_unix_s or 0, home.name, view) for view in views[:1]]
    if not found:
        return None
    _, where, view = max(found)
    record = records.find(where)
    if not view.ended and record is not None and health_of(Cluster(record)).state == "up":
        raise RunNameTakenError(f"The run {view.name} goes on in the cluster {where}.", f"Stop it there first: %ray use {where}")
    if view.state == "done":
        raise RunError(f"The run {view.name} of the cluster {where} is done; there is nothing to resume.", "Run its cell again.")
    return view.folder if Path(view.folder).exists() else None  # of a cluster elsewhere only its events are here


@nearest_named
def connect(name: str | None = None) -> Any:
    """Make this process a Ray driver of the cluster: ``ray.init`` with the right address and token."""
    from raykit.engine.connect import connect as as_driver

    record = get(name).record
    if not isinstance(record, LocalRecord):
        raise ClusterError(
            f"The cluster {record.name} is elsewhere; a Ray driver must stand on one of its nodes.",
            "Run the code there: a cell that begins with %%ray run",
        )
    return as_driver(record.gcs_address, record.token_file)


def doctor() -> Report:
    """Look at versions, devices, memory, disk and ports, and say what will not work and the line that mends it."""
    from raykit.client.doctor import examine

    return examine()


__all__ = [
    "Cluster",
    "clusters",
    "connect",
    "doctor",
    "down",
    "get",
    "plan",
    "resume",
    "runs",
    "scale",
    "status",
    "stop",
    "suspend",
    "up",
    "use",
]
