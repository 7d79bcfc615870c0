"""The provider of clusters on machines that ssh reaches: a Ray node on each, the head's on the first.

What stands on the head's machine is the truth: a live node, and a note of the spec and the token with it. So `up` from
another notebook, or after a crash in the middle, finds the cluster.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace

from raykit.cluster import record as records
from raykit.cluster.base import UP_TIMEOUT_S, Plan, Provider, Started, Status, Told, Way, refuse_difference
from raykit.cluster.record import ClusterRecord, SshRecord
from raykit.cluster.ssh.machine import Machine, ask_all, machines
from raykit.cluster.ssh.nodes import LOOK_S, adopt, end_all, join, make, wait, way_to
from raykit.cluster.ssh.sites import folder_of, sites_of
from raykit.errors import ClusterError
from raykit.spec import ClusterSpec


class Ssh(Provider):
    """Machines that a person names, each with the same Python, Ray and torch."""

    look_s = LOOK_S

    def plan(self, spec: ClusterSpec) -> Plan:
        """Say what ``up`` would make; each machine is asked what it has."""
        sites = sites_of(self.machines(spec))
        slots = [f"{spec.num_cpus or site.num_cpus:g} CPUs at {site.address}" for site in sites]
        things = [(site.machine.host, f"a Ray node: {words}") for site, words in zip(sites, slots, strict=True)]
        things.append(("hub", f"a door on the loopback of {spec.hosts[0]}, with a token, reached through ssh"))
        return Plan(name=spec.name, things=tuple(things), price="raykit knows no price of your machines.")

    def up(self, spec: ClusterSpec, *, told: Told, timeout_s: float = UP_TIMEOUT_S) -> Started:
        deadline = time.monotonic() + timeout_s
        with records.locked(spec.name):
            self._refuse_second_place(spec)
            return self.up_on(self.machines(spec), spec, told, deadline)

    def up_on(self, used: Sequence[Machine], spec: ClusterSpec, told: Told, deadline: float) -> Started:
        """Make the cluster on machines that are there, the head's first, or find it; the cluster's lock is held."""
        head, *_ = used
        found = head.ask("find", folder=folder_of(spec.name))
        if not found["alive"]:
            word = "is up"
            if found["left"]:
                end_all(used, spec.name, json.loads(found["note"])["ray_temp"] if found["note"] else "")
                word = "is up anew: its head had ended; its runs are still listed by %ray runs"
            told(f"{spec.name} starts on {', '.join(machine.host for machine in used)}.")
            if record := make(used, spec, deadline):
                return record, word
            found = head.ask("find", folder=folder_of(spec.name))  # somebody else was quicker
            if not found["alive"]:
                raise ClusterError(f"Somebody else started {spec.name} and ended it again meanwhile.", "Ask again.")
        record = adopt(found["note"], spec)
        refuse_difference(record, spec)
        wait(used[: record.spec.max_nodes], record, deadline)
        return record, "is up already"

    def machines(self, spec: ClusterSpec) -> list[Machine]:
        """Give the machines that have a node, the head's first."""
        return machines(spec)[: spec.max_nodes]

    def status(self, record: ClusterRecord) -> Status:
        return self.status_on(self.machines(record.spec)[0], record)

    def status_on(self, head: Machine, record: ClusterRecord) -> Status:
        """Say how a cluster is by what stands on its head's machine."""
        if head.ask("find", folder=folder_of(record.name))["alive"]:
            return Status(state="up")
        return Status(state="gone", why=f"its head on {head.host} has ended")

    def scale(self, record: ClusterRecord, num_nodes: int | tuple[int, int]) -> ClusterRecord:
        """Start nodes on further machines, or end those of the last ones. The first one has the head and stays."""
        assert isinstance(record, SshRecord)
        scaled = replace(record, spec=replace(record.spec, num_nodes=num_nodes))
        with records.locked(record.name):
            now, wanted = self.machines(record.spec), self.machines(scaled.spec)
            end_all(now[len(wanted) :], record.name, record.ray_temp)
            join(wanted, wanted[len(now) :], record, scaled)
        return scaled

    def suspend(self, record: ClusterRecord) -> None:
        raise ClusterError(
            f"The machines of {record.name} are yours: nothing is given back by suspending it.", f"End it: %ray down {record.name}"
        )

    def down(self, name: str) -> bool:
        with records.locked(name):
            record = records.find(name)
            if not isinstance(record, SshRecord):
                return False
            was_there = end_all(self.machines(record.spec), name, record.ray_temp)
            (record.folder / "token").unlink(missing_ok=True)
            record.remove()
            return was_there

    def logs(self, record: ClusterRecord, *, tail: int = 200) -> str:
        used = self.machines(record.spec)
        asked = ask_all(used, lambda machine: machine.ask("logs", folder=folder_of(record.name), tail=tail)["logs"])
        parts = (
            (f"{machine.host} {part}", lines) for machine, logs in zip(used, asked, strict=True) for part, lines in logs.items()
        )
        return "\n".join(f"{part} | {line}" for part, lines in parts for line in lines)

    def connect(self, record: ClusterRecord) -> Way:
        assert isinstance(record, SshRecord)
        return way_to(self.machines(record.spec)[0], record)

    def _refuse_second_place(self, spec: ClusterSpec) -> None:
        """Let no name stand for clusters with two heads."""
        known = records.find(spec.name)
        if isinstance(known, SshRecord) and known.spec.hosts[:1] != spec.hosts[:1] and self.status(known).state == "up":
            refuse_difference(known, spec)
