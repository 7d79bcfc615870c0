"""The provider of clusters on machines that ssh reaches: a Ray node on each, the head's on the first.

What stands on the head's machine is the truth: a live node, and a note of the spec and the token with it. So `up` from
another notebook, or after a crash in the middle, finds the cluster.
"""

from __future__ import annotations

import json
import secrets
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from raykit.cluster import processes
from raykit.cluster import record as records
from raykit.cluster.base import Plan, Provider, Started, Status, Told, Way, refuse_difference, versions_here
from raykit.cluster.code import python_path, zipped
from raykit.cluster.home import private_folder, write_secret
from raykit.cluster.local import LocalWay
from raykit.cluster.processes import Ports
from raykit.cluster.record import ClusterRecord, SshRecord
from raykit.cluster.ssh.machine import Machine, machines
from raykit.cluster.ssh.way import Forward
from raykit.codec import validate
from raykit.errors import ClusterError
from raykit.spec import ClusterSpec
from raykit.wire.door import Door, DoorClosedError

LOOK_S = 0.5
UP_TIMEOUT_S = 120.0
CODE, TOKEN, NOTE = "raykit.zip", "token", "note.json"
KEPT = ("log.sqlite", "log.sqlite-wal", "log.sqlite-shm", "runs")
NEEDED = {
    "ray": "'ray[default,data]==2.60.*'",
    "torch": "torch",
    "cloudpickle": "cloudpickle",
    "httpx": "httpx",
    "platformdirs": "platformdirs",
    "psutil": "psutil",
    "pydantic": "pydantic",
    "pynvml": "nvidia-ml-py",
    "wrapt": "wrapt",
}
"""What raykit's own code imports on a machine, by the package that brings it."""

# A machine that was cut off is taken for lost after about five seconds; Ray's own patience is half a minute.
HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "4",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What was found on a machine: the address by which the others reach it, its CPUs, free ports, where things go."""

    machine: Machine
    address: str
    num_cpus: int
    ports: Ports
    folder: str
    temp: str


class Ssh(Provider):
    """Machines that a person names, each with the same Python, Ray and torch."""

    look_s = LOOK_S

    def plan(self, spec: ClusterSpec) -> Plan:
        """Say what ``up`` would make; each machine is asked what it has."""
        sites = _sites(self.machines(spec))
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
        found = head.ask("find", folder=_folder(spec.name))
        if not found["alive"]:
            word = "is up"
            if found["left"]:
                end_all(used, spec.name, json.loads(found["note"])["ray_temp"] if found["note"] else "")
                word = "is up anew: its head had ended; its runs are still listed by %ray runs"
            told(f"{spec.name} starts on {', '.join(machine.host for machine in used)}.")
            if record := _make(used, spec, deadline):
                return record, word
            found = head.ask("find", folder=_folder(spec.name))  # somebody else was quicker
            if not found["alive"]:
                raise ClusterError(f"Somebody else started {spec.name} and ended it again meanwhile.", "Ask again.")
        record = _adopt(found["note"], spec)
        refuse_difference(record, spec)
        _wait(used[: record.spec.max_nodes], record, deadline)
        return record, "is up already"

    def machines(self, spec: ClusterSpec) -> list[Machine]:
        """Give the machines that have a node, the head's first."""
        return machines(spec)[: spec.max_nodes]

    def status(self, record: ClusterRecord) -> Status:
        return self.status_on(self.machines(record.spec)[0], record)

    def status_on(self, head: Machine, record: ClusterRecord) -> Status:
        """Say how a cluster is by what stands on its head's machine."""
        if head.ask("find", folder=_folder(record.name))["alive"]:
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
        asked = _each(used, lambda machine: machine.ask("logs", folder=_folder(record.name), tail=tail)["logs"])
        parts = (
            (f"{machine.host} {part}", lines) for machine, logs in zip(used, asked, strict=True) for part, lines in logs.items()
        )
        return "\n".join(f"{part} | {line}" for part, lines in parts for line in lines)

    def connect(self, record: ClusterRecord) -> Way:
        assert isinstance(record, SshRecord)
        return _way(self.machines(record.spec)[0], record)

    def _refuse_second_place(self, spec: ClusterSpec) -> None:
        """Let no name stand for clusters with two heads."""
        known = records.find(spec.name)
        if isinstance(known, SshRecord) and known.spec.hosts[:1] != spec.hosts[:1] and self.status(known).state == "up":
            refuse_difference(known, spec)


def _folder(name: str) -> str:
    return f"~/.raykit/clusters/{name}"


def _way(head: Machine, record: SshRecord) -> Way:
    return LocalWay(url=f"http://127.0.0.1:{record.door_port}") if head.is_here else Forward(head, record.door_port)


def _each(asked: Sequence[Machine], ask: Callable[[Machine], Any]) -> list[Any]:
    """Ask all machines at once, and give their answers in order."""
    with ThreadPoolExecutor(max_workers=max(1, len(asked))) as pool:
        return list(pool.map(ask, asked))


def _sites(asked: Sequence[Machine]) -> list[Site]:
    """See what machines have; they reach each other at the addresses at which ssh reached them.

    Raises:
        ClusterError: one lacks something, or has it in another version.
    """
    found = _each(asked, lambda machine: machine.ask("look", modules=list(NEEDED), num_ports=len(fields(Ports))))
    for machine, look in zip(asked, found, strict=True):
        _refuse_lack(machine, look)
    # This machine has the address from which the others were asked.
    here = next((look["asker"] for look in found if look["asker"]), "127.0.0.1")
    return [
        Site(
            machine=machine,
            address=look["address"] or here,
            num_cpus=look["num_cpus"],
            ports=Ports(**dict(zip((each.name for each in fields(Ports)), look["ports"], strict=True))),
            folder=_folder("").replace("~", look["home"], 1),
            temp=look["temp"],
        )
        for machine, look in zip(asked, found, strict=True)
    ]


def _refuse_lack(machine: Machine, look: dict[str, Any]) -> None:
    here = versions_here()
    python, ray = here["python_version"], here["ray_version"]
    if look["system"] != "linux":
        raise ClusterError(f"{machine.host} runs {look['system']}; raykit starts nodes on Linux.", "Name another machine.")
    if look["python"] != python:
        raise ClusterError(
            f"{machine.host} has Python {look['python']} ({machine.python}); this kernel is Python {python}, "
            "whose pickled code it cannot read.",
            f"Name a Python {python} of the machines: --python PATH",
        )
    if look["missing"]:
        packages = " ".join(NEEDED[name] for name in look["missing"])
        raise ClusterError(
            f"{machine.host} lacks {', '.join(look['missing'])}.", f"Install there: {machine.python} -m pip install {packages}"
        )
    if look["ray"] != ray:
        raise ClusterError(
            f"{machine.host} has Ray {look['ray']}; here is Ray {ray}, and nodes of two versions do not join.",
            f"Install there: {machine.python} -m pip install 'ray[default,data]=={ray}'",
        )


def _make(used: Sequence[Machine], spec: ClusterSpec, deadline: float) -> SshRecord | None:
    """Start every node and the hub, or nothing if the head stands by now.

    On an error or an interrupt all of them are ended.
    """
    head, *others = _sites(used)
    if others and head.address.startswith("127."):
        raise ClusterError(
            f"{head.machine.host} was reached at {head.address}, where {others[0].machine.host} cannot reach it.",
            "Name it by an address that the other machines reach.",
        )
    token_file = private_folder(records.cluster_folder(spec.name)) / "token"
    write_secret(token_file, secrets.token_hex(32))
    record = SshRecord(
        spec=spec,
        token_file=str(token_file),
        address=head.address,
        gcs_port=head.ports.gcs,
        door_port=head.ports.door,
        ray_temp=f"{head.temp}/{secrets.token_hex(4)}",
        **versions_here(),
    )
    record.save()  # before anything is started: so `down` finds what a killed one leaves
    with _ended_on_error(record, used):
        if not _start_head(record, head):
            return None
        _start_further(record, others)
        _wait(used, record, deadline)
    return record


def join(wanted: Sequence[Machine], joining: Sequence[Machine], record: SshRecord, scaled: SshRecord) -> None:
    """Start nodes on machines that join, and have the cluster known as it is then; the cluster's lock is held."""
    scaled.save()  # before anything is started: so `down` finds what a killed one leaves
    with _ended_on_error(scaled, joining, back_to=record):
        _start_further(scaled, _sites([wanted[0], *joining])[1:])
        _wait(wanted, scaled, time.monotonic() + UP_TIMEOUT_S)
    wanted[0].ask("write", folder=_folder(record.name), files=_packed({NOTE: _note(scaled)}))


def _start_head(record: SshRecord, head: Site) -> bool:
    """Start the head and the hub, and say whether this did it: the machine may have another one of that name by now."""
    spec, folder = record.spec, head.folder + record.name
    setting = {
        "name": spec.name,
        "address": f"{record.address}:{record.gcs_port}",
        "port": record.door_port,
        "token_file": f"{folder}/{TOKEN}",
        "folder": folder,
        "simulated_gpus": bool(spec.num_simulated_gpus),
        "sample_s": spec.sample_s,
        **spec.guards,
    }
    node = [*_node(record, head, processes.NODE), *processes.head_options(spec, head.ports, record.ray_temp)]
    hub = [head.machine.python, "-m", "raykit.engine.start", json.dumps(setting)]
    return _start(record, head, {"node": node, "hub": hub}, {NOTE: _note(record)})


def _start_further(record: SshRecord, joining: Sequence[Site]) -> None:
    to_head = f"--address={record.address}:{record.gcs_port}"
    for site in joining:
        if not _start(record, site, {"node": [*_node(record, site, processes.JOINED), to_head]}, {}):
            host, name = site.machine.host, record.name
            raise ClusterError(f"{host} has a node of another cluster {name}.", "Give this one another name, or end that one.")


def _node(record: SshRecord, site: Site, program: str) -> list[str]:
    spec = record.spec
    return [
        *processes.node_command(spec, site.ports, python=site.machine.python, address=site.address, program=program),
        f"--labels=raykit.io/rack={site.machine.host.rpartition('@')[2]}",
        *([f"--num-cpus={spec.num_cpus:g}"] if spec.num_cpus is not None else []),
        *([f"--object-store-memory={spec.object_store_bytes}"] if spec.object_store_bytes is not None else []),
    ]


def _start(record: SshRecord, site: Site, commands: dict[str, list[str]], files: dict[str, bytes]) -> bool:
    folder = site.folder + record.name
    answer = site.machine.ask(
        "start",
        folder=folder,
        ray_temp=record.ray_temp,
        files=_packed({CODE: zipped(), TOKEN: record.token.encode(), **files}),
        environment=processes.settings(record.spec, f"{folder}/{TOKEN}") | HEALTH | {"PYTHONPATH": python_path(f"{folder}/{CODE}")},
        commands=list(commands.items()),
    )
    return bool(answer["started"])


def _packed(files: dict[str, bytes]) -> dict[str, str]:
    return {name: b64encode(data).decode() for name, data in files.items()}


def _note(record: SshRecord) -> bytes:
    """Give what is written down beside the head: the record and the token, without how this person reaches the machines."""
    spec = replace(record.spec, key="", ssh_config="")
    return json.dumps(asdict(replace(record, spec=spec, token_file="")) | {"token": record.token}).encode()


def _adopt(note: str, asked: ClusterSpec) -> SshRecord:
    """Write down a cluster that is there as one of this person's, reached as this person reaches it."""
    written = json.loads(note)
    token_file = private_folder(records.cluster_folder(asked.name)) / "token"
    write_secret(token_file, written.pop("token"))
    found: SshRecord = validate(SshRecord, written | {"token_file": str(token_file)})
    record = replace(found, spec=replace(found.spec, key=asked.key, ssh_config=asked.ssh_config))
    record.save()
    return record


def _wait(used: Sequence[Machine], record: SshRecord, deadline: float) -> None:
    """Wait until the door answers and every node is there.

    Raises:
        ClusterError: a node has ended, or the time is over.
    """
    with closing(_way(used[0], record)) as way, closing(Door(way.url, record.token)) as door:
        while True:
            there = "its door does not answer"
            with suppress(DoorClosedError):
                num_alive = sum(node.alive for node in door.status().nodes)
                if num_alive >= len(used):
                    return
                there = f"{num_alive} of {len(used)} nodes are there"
            for machine, found in zip(used, _each(used, lambda one: one.ask("ended", folder=_folder(record.name))), strict=True):
                if found["node"]:
                    raise ClusterError(f"The node on {machine.host} ended while it started.", _tail(found["logs"]))
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"The cluster {record.name} was given up waiting: {there}.",
                    f"Do the machines reach {record.address}, at any port? A firewall between them would stop them.",
                )
            time.sleep(LOOK_S)


def _tail(logs: dict[str, list[str]]) -> str:
    return "\n".join(f"{name} | {line}" for name, lines in logs.items() for line in lines)


@contextmanager
def _ended_on_error(record: SshRecord, used: Sequence[Machine], *, back_to: SshRecord | None = None) -> Iterator[None]:
    """End what was started on machines and go back to the earlier record, or to none, if it goes wrong."""
    try:
        yield
    except BaseException:  # an interrupt too must leave nothing behind
        end_all(used, record.name, record.ray_temp)
        if back_to is None:
            (record.folder / "token").unlink(missing_ok=True)
            record.remove()
        else:
            back_to.save()
        raise


def end_all(ending: Sequence[Machine], name: str, ray_temp: str) -> bool:
    """End a cluster's processes on machines, the head last, and say whether there were any.

    Raises:
        ClusterError: machines that are not reached; the others are done.
    """
    was_there, refused = False, []
    for machine in reversed(ending):
        try:
            was_there |= machine.ask("end", folder=_folder(name), ray_temp=ray_temp, kept=KEPT)["was_there"]
        except ClusterError as exc:
            refused.append(exc)
    if refused:
        folder = records.cluster_folder(name)
        raise ClusterError(
            refused[0].problem, f"Ask again when it is reached. If it is gone for good, forget the cluster: rm -r {folder}"
        )
    return was_there
