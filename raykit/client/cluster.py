"""A cluster that can be asked: its record, its place and its door."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from typing import TypeVar

from raykit.client.mirror import Mirror
from raykit.cluster import record as records
from raykit.cluster.base import Provider, Status, Way
from raykit.cluster.places import provider
from raykit.cluster.processes import num_cpus
from raykit.cluster.record import ClusterRecord, KubeRecord, SshRecord
from raykit.errors import ClusterError, ClusterLostError, MissingPackageError
from raykit.events import CLUSTER, Decided
from raykit.spec.cluster import shown
from raykit.store.log import Log
from raykit.views import ClusterView
from raykit.wire.door import Door, DoorClosedError, NobodyThereError

T = TypeVar("T")

HUB_RESTART_S = 20.0
MAX_ASKED = 3
CUT_OFF_S = 600.0
LOOK_WAIT_S = 5.0  # for the samplers; those of nodes that nobody has looked at have to be started


class Cluster:
    """A cluster by its record; ``found`` says how ``up`` found it. Its door is opened when it is first asked."""

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
        if status.state != "suspended":
            return status
        why, since_unix_s = status.why, status.since_unix_s
        if (word := self._last_word()) is not None:
            at_unix_s, reason = word
            since_unix_s = since_unix_s or at_unix_s
            why = why if reason in why else f"{reason}; {why}"
        if self.record.spec.delete_after_s is not None:
            why += f"; {_end_words(since_unix_s, self.record.spec.delete_after_s)}"
        return replace(status, why=why, since_unix_s=since_unix_s)

    def is_overdue(self, now_unix_s: float) -> bool:
        """Say whether it has been suspended for longer than its ``--delete-after``, as far as that is known."""
        limit_s = self.record.spec.delete_after_s
        if limit_s is None:
            return False
        health = health_of(self)
        return health.state == "suspended" and health.since_unix_s is not None and now_unix_s - health.since_unix_s >= limit_s

    def _last_word(self) -> tuple[float, str] | None:
        """Give when and for which reason its hub suspended it since it came up, as far as it is told here."""
        path = records.cluster_folder(self.name) / "log.sqlite"
        if not path.exists():
            return None
        with closing(Log(path)) as log:
            told = [
                record for record in log.read_all(run=CLUSTER, kinds=(Decided,)) if record.at_unix_s > self.record.created_unix_s
            ]
        return (told[-1].at_unix_s, told[-1].event.reason) if told and isinstance(told[-1].event, Decided) else None

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
        return self._ask(question, DoorClosedError)

    def tell(self, wish: Callable[[Door], T]) -> T:
        """Ask at the door what is to be done once; again only where nobody was there to hear it.

        Raises:
            ClusterLostError: it is gone.
            DoorClosedError: this is not answered, and may have been heard.
        """
        return self._ask(wish, NobodyThereError)

    def _ask(self, question: Callable[[Door], T], again: type[DoorClosedError]) -> T:
        for _ in range(MAX_ASKED - 1):
            try:
                return question(self.door)
            except again:
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


def health_of(cluster: Cluster) -> Status:
    """Say how a cluster is; one whose place cannot be asked is unknown, and says why."""
    try:
        return cluster.health()
    except (ClusterError, MissingPackageError) as exc:
        return Status(state="unknown", why=str(exc))


def _end_words(since_unix_s: float | None, delete_after_s: float) -> str:
    if since_unix_s is None:
        return "since when is not known, so --delete-after leaves it"
    return f"it is ended from {time.strftime('%Y-%m-%d %H:%M', time.localtime(since_unix_s + delete_after_s))} on (--delete-after)"
