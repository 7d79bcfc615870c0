"""The clusters of a person, and which of them is the current one."""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from raykit.client.mirror import Mirror
from raykit.cluster import record as records
from raykit.cluster.base import Plan, Provider, Status, Told, Way, refuse_difference
from raykit.cluster.home import clusters_home
from raykit.cluster.places import provider
from raykit.cluster.processes import num_cpus
from raykit.cluster.record import ClusterRecord, KubeRecord, LocalRecord, SshRecord
from raykit.commands import Stop
from raykit.errors import (
    ClusterError,
    ClusterLostError,
    MissingPackageError,
    NoClusterError,
    RunError,
    RunLostError,
    RunNameTakenError,
    RunNotFoundError,
)
from raykit.events import CLUSTER, Decided, RunAccepted
from raykit.spec import ClusterSpec
from raykit.spec.cluster import shown
from raykit.store.log import Log
from raykit.views import ClusterView, RunView, fold
from raykit.wire.door import Door, DoorClosedError

if TYPE_CHECKING:
    from raykit.client.doctor import Report
    from raykit.client.run import Run

T = TypeVar("T")

HUB_RESTART_S = 20.0
MAX_ASKED = 3
CUT_OFF_S = 600.0
LOOK_WAIT_S = 5.0  # for the samplers; those of nodes that nobody has looked at have to be started


class Cluster:
    """A cluster that can be asked: its record, its place and its door."""

    def __init__(self, record: ClusterRecord, found: str = "is up") -> None:
        self.record = record
        self.found = found
        self._way: Way | None = None
        self._door: Door | None = None
        self._mirror: Mirror | None = None

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def place(self) -> Provider:
        return provider(self.record.spec.place)

    @property
    def door(self) -> Door:
        """The way to ask it.

        Raises:
            ClusterLostError: it was ended.
        """
        if self._door is None:
            try:
                token = self.record.token
            except FileNotFoundError:
                raise ClusterLostError(
                    f"The cluster {self.name} is gone: it was ended.", f"Start it again: %ray up {self.name}"
                ) from None
            self._way = self.place.connect(self.record)
            self._door = Door(self._way.url, token)
            weakref.finalize(self, self._way.close)
        return self._door

    def close(self) -> None:
        """Close the door and the way to it, if they are open; the next call opens them again."""
        if self._mirror is not None:
            self._mirror.close()
        self._mirror = None
        if self._door is not None:
            self._door.close()
        if self._way is not None:
            self._way.close()
        self._door = self._way = None

    def mirror(self) -> Cluster:
        """Have its events kept here too, where they would go with its machines."""
        if self._mirror is None and isinstance(self.record, SshRecord | KubeRecord):
            self._mirror = Mirror(self.record, self.door.url)
            weakref.finalize(self, self._mirror.end)
        return self

    @property
    def is_alive(self) -> bool:
        return self.health().state == "up"

    def health(self) -> Status:
        """Say how its place knows it to be; of one that suspended itself also why, where somebody was connected then."""
        status = self.place.status(self.record)
        if status.state != "suspended" or not (reason := self._last_word()) or reason in status.why:
            return status
        return replace(status, why=f"{reason}; {status.why}")

    def _last_word(self) -> str:
        """Give the reason for which its hub suspended it since it came up, as far as it is told here."""
        path = records.cluster_folder(self.name) / "log.sqlite"
        if not path.exists():
            return ""
        with closing(Log(path)) as log:
            told = [
                record for record in log.read_all(run=CLUSTER, kinds=(Decided,)) if record.at_unix_s > self.record.created_unix_s
            ]
        return told[-1].event.reason if told and isinstance(told[-1].event, Decided) else ""

    def status(self, *, wait_s: float = LOOK_WAIT_S) -> ClusterView:
        """Give the nodes with their slots, and what their machines and GPUs use now, as far as it is told in ``wait_s``."""
        return self.door.status(wait_s=wait_s)

    def logs(self, *, tail: int = 200) -> str:
        """Give the last lines that the parts of the cluster itself wrote: its head, its nodes, its pods."""
        return self.place.logs(self.record, tail=tail)

    def wait_for_door(self, *, timeout_s: float = HUB_RESTART_S) -> None:
        """Wait while the hub restarts, and longer while this machine is cut off from the cluster's.

        Raises:
            ClusterLostError: at once when the head is dead, else after ``timeout_s``; after ten minutes when its place
                cannot be asked.
        """
        begun_s = time.monotonic()
        while True:
            health = health_of(self)
            if health.state not in ("up", "unknown"):
                raise ClusterLostError(
                    f"The cluster {self.name} is {health.state}: {health.why}.",
                    f"Start it again and take the run up: %ray up {self.name}, then %ray resume RUN",
                )
            with suppress(DoorClosedError):
                self.door.ping(timeout_s=5)
                return
            patience_s = max(timeout_s, CUT_OFF_S) if health.state == "unknown" else timeout_s
            if time.monotonic() - begun_s > patience_s:
                why = f" {health.why}" if health.why else ""
                raise ClusterLostError(f"The door of {self.name} does not answer for {patience_s:.0f} s.{why}", "See %ray doctor.")
            time.sleep(self.place.look_s)

    def ask(self, question: Callable[[Door], T]) -> T:
        """Ask at the door what may be asked twice; again where its hub went away meanwhile, or the link.

        Raises:
            ClusterLostError: it is gone.
            DoorClosedError: this is not answered, though the door is there.
        """
        for _ in range(MAX_ASKED - 1):
            try:
                return question(self.door)
            except DoorClosedError:
                self.wait_for_door()
        return question(self.door)

    def __repr__(self) -> str:
        spec = self.record.spec
        gpus = f", {spec.num_simulated_gpus} simulated GPUs" if spec.num_simulated_gpus else ""
        gpus = f", {spec.gpus_per_node} GPUs a node" if spec.gpus_per_node else gpus
        nodes = f", {shown(spec.nodes)} nodes" if spec.nodes != 1 else ""
        health = health_of(self)
        state = self.found if health.state == "up" else f"is {health.state}: {health.why}"
        dashboard = getattr(self.record, "dashboard_url", None)
        link = f"\nDashboard: {dashboard} (asks for the cluster's token)" if dashboard else ""
        cpus = num_cpus(spec) if spec.place == "local" else spec.num_cpus
        slots = f"{cpus:g} CPUs a node{gpus}{nodes}" if cpus is not None else f"{spec.place}{gpus}{nodes}"
        waiting = f"\n{health.why}" if health.state == "up" and health.why else ""
        return f"Cluster {self.name} {state}: {slots}, Ray {self.record.ray_version}.{waiting}{link}"


_current: Cluster | None = None


def up(name: str = "local", **options: Any) -> Cluster:
    """Give the cluster ``name``, started if it is not there; it outlives this process.

    Args:
        name: how it is called.
        options: the other fields of :class:`raykit.spec.ClusterSpec`, such as ``num_cpus=4`` or ``place="k8s"``.
    """
    return up_spec(ClusterSpec(name=name, **options))


def up_spec(spec: ClusterSpec, *, told: Told = print) -> Cluster:
    """Give the cluster of ``spec`` and make it the current one; ``told`` hears what is waited for."""
    global _current  # noqa: PLW0603  (the current cluster is what a session is)
    _refuse_two_places(spec)
    started = Cluster(*provider(spec.place).up(spec, told=told))
    if _current is not None:
        _current.close()
    _current = started.mirror()
    return _current


def _refuse_two_places(spec: ClusterSpec) -> None:
    """Let no name stand for clusters in two places: who says it later could mean either."""
    found = records.find(spec.name)
    if found is not None and found.spec.place != spec.place and provider(found.spec.place).status(found).state != "gone":
        refuse_difference(found, spec)


def plan(name: str = "local", **options: Any) -> Plan:
    """Say what ``up`` with the same options would make; nothing is made."""
    return plan_spec(ClusterSpec(name=name, **options))


def plan_spec(spec: ClusterSpec) -> Plan:
    """Say what :func:`up_spec` would make."""
    return provider(spec.place).plan(spec)


def scale(name: str | None = None, *, num_nodes: int | tuple[int, int]) -> Cluster:
    """Let a cluster have so many nodes, or as many as runs need within a range."""
    global _current  # noqa: PLW0603
    cluster = get(name)
    scaled = Cluster(cluster.place.scale(cluster.record, num_nodes))
    if _current is not None and _current.name == scaled.name:
        _current.close()
        _current = scaled.mirror()
    return scaled


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


def health_of(cluster: Cluster) -> Status:
    """Say how a cluster is; one whose place cannot be asked is unknown, and says why."""
    try:
        return cluster.health()
    except (ClusterError, MissingPackageError) as exc:
        return Status(state="unknown", why=str(exc))


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


def _bring_home(record: ClusterRecord) -> None:
    """Keep what a cluster elsewhere tells last; one that is not reached any more tells nothing."""
    with suppress(ClusterError, MissingPackageError), closing(Cluster(record)) as cluster:
        cluster.mirror()


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
    if not view.ended and record is not None and health_of(Cluster(record)).state == "up":
        raise RunNameTakenError(f"The run {view.name} goes on in the cluster {where}.", f"Stop it there first: %ray use {where}")
    if view.state == "done":
        raise RunError(f"The run {view.name} of the cluster {where} is done; there is nothing to resume.", "Run its cell again.")
    return view.folder if Path(view.folder).exists() else None  # of a cluster elsewhere only its events are here


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
    "RunLostError",
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
