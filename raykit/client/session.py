"""The clusters of a person, and which of them is the current one."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from raykit.cluster import local
from raykit.cluster import record as records
from raykit.cluster.home import clusters_home
from raykit.cluster.record import ClusterRecord
from raykit.commands import Stop
from raykit.errors import ClusterLostError, NoClusterError, RunError, RunLostError, RunNameTakenError, RunNotFoundError
from raykit.events import CLUSTER
from raykit.spec import ClusterSpec
from raykit.store.log import Log
from raykit.views import ClusterView, RunView, fold
from raykit.wire.door import Door, DoorClosedError

if TYPE_CHECKING:
    from raykit.client.doctor import Report
    from raykit.client.run import Run

HUB_RESTART_S = 20.0
LOOK_WAIT_S = 5.0  # for the samplers; those of nodes that nobody has looked at have to be started


class Cluster:
    """A cluster that can be asked: its record and its door."""

    def __init__(self, record: ClusterRecord, found: str = "is up") -> None:
        self.record = record
        self.found = found
        self._door: Door | None = None

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def door(self) -> Door:
        if self._door is None:
            self._door = Door(self.record.door_url, self.record.token)
        return self._door

    def close(self) -> None:
        """Close the connection to the door, if there is one."""
        if self._door is not None:
            self._door.close()

    @property
    def is_alive(self) -> bool:
        return self.record.is_alive()

    def status(self) -> ClusterView:
        """Give the nodes with their slots, and what their machines and GPUs use now."""
        return self.door.status(wait_s=LOOK_WAIT_S)

    def wait_for_door(self, *, timeout_s: float = HUB_RESTART_S) -> None:
        """Wait while the hub restarts.

        Raises:
            ClusterLostError: at once when the head is dead, else after ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            if not self.is_alive:
                raise ClusterLostError(
                    f"The head of the cluster {self.name} died (process {self.record.head.pid}).",
                    f"Start it again and take the run up: %ray up {self.name}, then %ray resume RUN",
                )
            with suppress(DoorClosedError):
                self.door.ping(timeout_s=5)
                return
            if time.monotonic() > deadline:
                raise ClusterLostError(f"The door of {self.name} does not answer for {timeout_s:.0f} s.", "See %ray doctor.")
            time.sleep(0.05)

    def __repr__(self) -> str:
        spec = self.record.spec
        gpus = f", {spec.num_simulated_gpus} simulated GPUs" if spec.num_simulated_gpus else ""
        nodes = f", {spec.num_nodes} nodes" if spec.num_nodes > 1 else ""
        state = self.found if self.is_alive else "is gone: its head died"
        dashboard = f"\nDashboard: {self.record.dashboard_url} (asks for the cluster's token)" if self.record.dashboard_url else ""
        return f"Cluster {self.name} {state}: {local.num_cpus(spec):g} CPUs a node{gpus}{nodes}, Ray {self.record.ray_version}.{dashboard}"


_current: Cluster | None = None


def up(name: str = "local", **options: Any) -> Cluster:
    """Give the cluster ``name``, started if it is not there; it outlives this process.

    Args:
        name: how it is called.
        options: the other fields of :class:`raykit.spec.ClusterSpec`, such as ``num_cpus=4``.
    """
    return up_spec(ClusterSpec(name=name, **options))


def up_spec(spec: ClusterSpec) -> Cluster:
    """Give the cluster of ``spec`` and make it the current one."""
    global _current  # noqa: PLW0603  (the current cluster is what a session is)
    _current = Cluster(*local.up(spec))
    return _current


def use(name: str) -> Cluster:
    """Make a cluster that is up the current one.

    Raises:
        NoClusterError: none of that name is up.
    """
    global _current  # noqa: PLW0603
    _current = get(name)
    return _current


def get(name: str | None = None) -> Cluster:
    """Give a cluster by name, or the current one, or the newest that is up.

    Raises:
        NoClusterError: it is not up; those that are up are named.
        ClusterLostError: it was the current one, and its head died.
    """
    if name is None and _current is not None:
        if _current.is_alive:
            return _current
        raise ClusterLostError(f"The head of the cluster {_current.name} died.", f"Start it again: %ray up {_current.name}")
    alive = [record for record in records.find_all() if record.is_alive()]
    for record in alive:
        if name in (None, record.name):
            return Cluster(record)
    others = f"There are: {', '.join(record.name for record in alive)}." if alive else ""
    if name and records.find(name):
        raise NoClusterError(f"The cluster {name} is gone: its head died.", f"Start it again: %ray up {name}")
    raise NoClusterError(
        f"No cluster {name} is up. {others}" if name else "No cluster is up.", f"Start one: %ray up {name or ''}".rstrip()
    )


def clusters() -> list[Cluster]:
    """Give all clusters that are written down, the newest first; those whose head died say so."""
    return [Cluster(record) for record in records.find_all()]


def down(name: str | None = None) -> str:
    """End a cluster (the current one if no name is given); its log and its runs stay. None to end is fine."""
    global _current  # noqa: PLW0603
    if name is None:
        name = _current.name if _current else next((record.name for record in records.find_all()), "local")
    if "ray" in sys.modules and (found := records.find(name)):
        from raykit.engine.connect import disconnect

        disconnect(found.gcs_address)
    was_there = local.down(name)
    if _current is not None and _current.name == name:
        _current.close()
        _current = None
    return f"Cluster {name} is down; its runs are kept." if was_there else f"No cluster {name} is up; nothing to do."


def status(name: str | None = None) -> ClusterView:
    """Give the nodes of a cluster with their slots, and what their machines and GPUs use now."""
    return get(name).status()


def runs(name: str | None = None) -> list[RunView]:
    """Give the runs of a cluster, newest first; of one that is gone, from its log."""
    try:
        return get(name).door.runs()
    except (NoClusterError, ClusterLostError):
        folder = records.cluster_folder(name or (_current.name if _current else "local"))
        return views_in_log(folder / "log.sqlite") if (folder / "log.sqlite").exists() else []


def views_in_log(path: Any) -> list[RunView]:
    """Fold the views of all runs from a log on disk, newest first."""
    views: dict[str, RunView] = {}
    log = Log(path)
    for record in log.read_all():
        if record.run != CLUSTER:
            views[record.run] = fold(views.get(record.run) or RunView(name=record.run), record)
    log.close()
    return sorted(views.values(), key=lambda view: view.accepted_at_unix_s or 0, reverse=True)


def watch(name: str) -> Run:
    """Give a run by name, with all that was missed; ``digits`` means its newest."""
    from raykit.client.run import Run

    run = Run(get(), name)
    run.refresh()
    return run


def stop(name: str) -> None:
    """Ask a run to end at its next commit or batch. One that is over stays as it is."""
    get().door.command(Stop(run=name))


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
        return Run(cluster, cluster.door.resume(name))
    except RunNotFoundError:
        folder = _folder_elsewhere(name, cluster.name)
        if folder is None:
            raise
        return Run(cluster, cluster.door.resume(name, folder=folder))


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
    if not view.ended and record is not None and record.is_alive():
        raise RunNameTakenError(f"The run {view.name} goes on in the cluster {where}.", f"Stop it there first: %ray use {where}")
    if view.state == "done":
        raise RunError(f"The run {view.name} of the cluster {where} is done; there is nothing to resume.", "Run its cell again.")
    return view.folder


def connect(name: str | None = None) -> Any:
    """Make this process a Ray driver of the cluster: ``ray.init`` with the right address and token."""
    from raykit.engine.connect import connect as as_driver

    record = get(name).record
    return as_driver(record.gcs_address, record.token_file)


def doctor() -> Report:
    """Look at versions, devices, memory, disk and ports, and say what will not work and the line that mends it."""
    from raykit.client.doctor import examine

    return examine()


__all__ = [
    "Cluster",
    "RunLostError",
    "clusters",
    "connect",
    "doctor",
    "down",
    "get",
    "resume",
    "runs",
    "status",
    "stop",
    "up",
    "use",
]
