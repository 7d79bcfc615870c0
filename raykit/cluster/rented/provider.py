"""The provider of clusters on machines that a cloud rents: then they are used as any that ssh reaches.

What is rented is the truth: the cloud knows the machines by the cluster's name, so `up` after a crash in the middle finds
them, and `down` gives all of them back.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from raykit.cluster import record as records
from raykit.cluster.base import Plan, Started, Status, Told, refuse_difference, versions_here
from raykit.cluster.home import private_folder
from raykit.cluster.record import ClusterRecord, SshRecord
from raykit.cluster.rented.cloud import Cloud, Rented
from raykit.cluster.ssh.machine import Machine
from raykit.cluster.ssh.nodes import end_all, join
from raykit.cluster.ssh.provider import Ssh
from raykit.errors import ClusterError
from raykit.spec import ClusterSpec

UP_TIMEOUT_S = 900.0
LOOK_S = 2.0
ANSWER_S = 300.0  # so long a machine that was started may take to answer ssh


class OnRented(Ssh):
    """Machines of one cloud."""

    look_s = LOOK_S

    def __init__(self, cloud: type[Cloud]) -> None:
        self._cloud = cloud

    def plan(self, spec: ClusterSpec) -> Plan:
        things, price = self._cloud(spec).plan()
        hub = ("hub", "a door on the loopback of machine 1, with a token, reached through ssh")
        return Plan(name=spec.name, things=(*things, hub), price=price)

    def up(self, spec: ClusterSpec, *, told: Told, timeout_s: float = UP_TIMEOUT_S) -> Started:
        deadline = time.monotonic() + timeout_s
        with records.locked(spec.name):
            cloud = self._cloud(spec)
            known, before = self._known(spec)
            if known is not None:
                # Of another region too: nobody pays for machines that no record knows of.
                refuse_difference(known, spec, is_up=False)
            else:
                before = cloud.look()
            # Before anything is rented: so `down` finds what a killed one leaves.
            kept = known or _placeholder(spec)
            kept.save()
            try:
                again, now = _rent(cloud, spec, before, told)
                record, word = self.up_on(self._answering(cloud, spec, now, told), spec, told, deadline)
            except BaseException:  # an interrupt too must leave nothing behind that costs
                kept.save()  # until they are given back
                there = {each.id for each in before}
                if new := [each for each in cloud.look() if each.id not in there]:
                    told(f"{spec.name} gives back what it has rented.")
                    cloud.end(new)
                if not before:
                    kept.remove()
                raise
            return record, "is up again, on the machines that it had" if again else word

    def status(self, record: ClusterRecord) -> Status:
        cloud = self._cloud(record.spec)
        machines = cloud.look()
        if not machines:
            return Status(state="gone", why="its machines are given back")
        if machines[0].stopped:
            moments = [each.since_unix_s for each in machines if each.since_unix_s is not None]
            since = max(moments) if len(moments) == len(machines) else None
            return Status(state="suspended", why="its machines are stopped; their disks are kept", since_unix_s=since)
        if not machines[0].runs:
            return Status(state="unknown", why=f"machine 1 is {machines[0].state}")
        return self.status_on(cloud.reached(machines[0]), record)

    def scale(self, record: ClusterRecord, num_nodes: int | tuple[int, int]) -> ClusterRecord:
        """Rent further machines, or give those of the highest numbers back. The first one has the head and stays."""
        assert isinstance(record, SshRecord)
        scaled = replace(record, spec=replace(record.spec, num_nodes=num_nodes))
        with records.locked(record.name):
            cloud = self._cloud(scaled.spec)
            now = cloud.look()
            had = _running(cloud, record.spec, now)
            staying, leaving = now[: scaled.spec.max_nodes], now[scaled.spec.max_nodes :]
            end_all(had[scaled.spec.max_nodes :], record.name, record.ray_temp)
            if leaving:
                cloud.end(leaving)
            _, now = _rent(cloud, scaled.spec, staying, lambda _: None)
            wanted = self._answering(cloud, scaled.spec, now, lambda _: None)
            join(wanted, wanted[len(had) :], record, scaled)
        return scaled

    def suspend(self, record: ClusterRecord) -> None:
        """Stop all machines. Their disks are kept, and with them what `up` brings back; its runs can be resumed."""
        with records.locked(record.name):
            cloud = self._cloud(record.spec)
            cloud.stop([each for each in cloud.look() if each.runs])

    def down(self, name: str) -> bool:
        with records.locked(name):
            record = records.find(name)
            if not isinstance(record, SshRecord):
                return False
            cloud = self._cloud(record.spec)
            machines = cloud.look()
            if machines:
                cloud.end(machines)
            (record.folder / "token").unlink(missing_ok=True)
            (record.folder / "known_hosts").unlink(missing_ok=True)
            record.remove()
            return bool(machines)

    def machines(self, spec: ClusterSpec) -> list[Machine]:
        """Give the machines that run, the head's first.

        Raises:
            ClusterError: none runs.
        """
        cloud = self._cloud(spec)
        return _running(cloud, spec, cloud.look())

    def _known(self, spec: ClusterSpec) -> tuple[SshRecord | None, list[Rented]]:
        """Give the record of a cluster of this place whose machines are there, running or stopped, and those."""
        record = records.find(spec.name)
        if isinstance(record, SshRecord) and record.spec.place == spec.place:
            there = self._cloud(record.spec).look()
            return (record if there else None), there
        return None, []

    def _answering(self, cloud: Cloud, spec: ClusterSpec, seen: list[Rented], told: Told) -> list[Machine]:
        """Wait until each machine answers ssh: one that starts has no address, and then no server yet."""
        told(f"{spec.name} waits until its machines answer.")
        deadline = time.monotonic() + ANSWER_S
        for now in _looks(cloud, seen):
            running = [each for each in now if each.state == "running"]
            if len(running) >= spec.max_nodes:
                reached = [cloud.reached(each) for each in running]
                if all(machine.answers() for machine in reached):
                    return reached
            if time.monotonic() > deadline:
                states = ", ".join(f"{each.number} is {each.state}" for each in now) or "none is there"
                break
        raise ClusterError(f"Machines of {spec.name} do not answer ssh after {ANSWER_S:.0f} s; of them {states}.", cloud.unreached)


def _looks(cloud: Cloud, seen: list[Rented]) -> Iterator[list[Rented]]:
    """Give the machines again and again, first as they were seen: a look can take a cloud many seconds."""
    yield seen
    while True:
        yield cloud.look()
        time.sleep(LOOK_S)


def _running(cloud: Cloud, spec: ClusterSpec, now: list[Rented]) -> list[Machine]:
    if not (running := [each for each in now if each.runs]):
        raise ClusterError(f"No machine of {spec.name} runs.", f"Start it: %ray up {spec.name} --on {spec.place}")
    return [cloud.reached(each) for each in running]


def _rent(cloud: Cloud, spec: ClusterSpec, there: list[Rented], told: Told) -> tuple[bool, list[Rented]]:
    """Have as many machines run as are wanted.

    Say whether some were there before and did not, and give all as they are now; none where that is to be seen anew.
    """
    wanted = range(1, spec.max_nodes + 1)
    idle = [each for each in there if not each.runs and each.number in wanted]
    if idle:
        told(f"{spec.name} starts {len(idle)} machines that were {idle[0].state}.")
        cloud.start(idle)
    if lacking := sorted(set(wanted) - {each.number for each in there}):
        told(f"{spec.name} rents {len(lacking)} of: {cloud.what}.")
        cloud.rent(lacking)
    return bool(idle), [] if idle or lacking else there


def _placeholder(spec: ClusterSpec) -> SshRecord:
    """Give what is known of a cluster before its machines are there."""
    token_file = private_folder(records.cluster_folder(spec.name)) / "token"
    return SshRecord(spec=spec, token_file=str(token_file), address="", gcs_port=0, door_port=0, ray_temp="", **versions_here())
