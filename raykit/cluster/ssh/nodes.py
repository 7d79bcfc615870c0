"""The nodes of a cluster on machines: the head with the hub, further ones, and the note beside the head that tells of them."""

from __future__ import annotations

import json
import secrets
import time
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, replace

from raykit.cluster import processes
from raykit.cluster import record as records
from raykit.cluster.base import UP_TIMEOUT_S, Way, versions_here
from raykit.cluster.code import python_path, zipped
from raykit.cluster.home import private_folder, write_secret
from raykit.cluster.local import LocalWay
from raykit.cluster.record import SshRecord
from raykit.cluster.ssh.machine import Machine, ask_all
from raykit.cluster.ssh.sites import Site, folder_of, sites_of
from raykit.cluster.ssh.way import Forward
from raykit.codec import validate
from raykit.errors import ClusterError
from raykit.spec import ClusterSpec
from raykit.wire.door import Door, DoorClosedError

LOOK_S = 0.5
CODE, TOKEN, NOTE = "raykit.zip", "token", "note.json"
KEPT = ("log.sqlite", "log.sqlite-wal", "log.sqlite-shm", "runs")

# A machine that was cut off is taken for lost after about five seconds; Ray's own patience is half a minute.
HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "4",
}


def make(used: Sequence[Machine], spec: ClusterSpec, deadline: float) -> SshRecord | None:
    """Start every node and the hub, or nothing if the head stands by now.

    On an error or an interrupt all of them are ended.
    """
    head, *others = sites_of(used)
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
        wait(used, record, deadline)
    return record


def join(wanted: Sequence[Machine], joining: Sequence[Machine], record: SshRecord, scaled: SshRecord) -> None:
    """Start nodes on machines that join, and have the cluster known as it is then; the cluster's lock is held."""
    scaled.save()  # before anything is started: so `down` finds what a killed one leaves
    with _ended_on_error(scaled, joining, back_to=record):
        _start_further(scaled, sites_of([wanted[0], *joining])[1:])
        wait(wanted, scaled, time.monotonic() + UP_TIMEOUT_S)
    wanted[0].ask("write", folder=folder_of(record.name), files=_packed({NOTE: _note(scaled)}))


def adopt(note: str, asked: ClusterSpec) -> SshRecord:
    """Write down a cluster that is there as one of this person's, reached as this person reaches it."""
    written = json.loads(note)
    token_file = private_folder(records.cluster_folder(asked.name)) / "token"
    write_secret(token_file, written.pop("token"))
    found: SshRecord = validate(SshRecord, written | {"token_file": str(token_file)})
    record = replace(found, spec=replace(found.spec, key=asked.key, ssh_config=asked.ssh_config))
    record.save()
    return record


def way_to(head: Machine, record: SshRecord) -> Way:
    return LocalWay(url=f"http://127.0.0.1:{record.door_port}") if head.is_here else Forward(head, record.door_port)


def wait(used: Sequence[Machine], record: SshRecord, deadline: float) -> None:
    """Wait until the door answers and every node is there.

    Raises:
        ClusterError: a node has ended, or the time is over.
    """
    with closing(way_to(used[0], record)) as way, closing(Door(way.url, record.token)) as door:
        while True:
            there = "its door does not answer"
            with suppress(DoorClosedError):
                num_alive = sum(node.alive for node in door.status().nodes)
                if num_alive >= len(used):
                    return
                there = f"{num_alive} of {len(used)} nodes are there"
            ended = ask_all(used, lambda one: one.ask("ended", folder=folder_of(record.name)))
            for machine, found in zip(used, ended, strict=True):
                if found["node"]:
                    raise ClusterError(f"The node on {machine.host} ended while it started.", _tail(found["logs"]))
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"The cluster {record.name} was given up waiting: {there}.",
                    f"Do the machines reach {record.address}, at any port? A firewall between them would stop them.",
                )
            time.sleep(LOOK_S)


def end_all(ending: Sequence[Machine], name: str, ray_temp: str) -> bool:
    """End a cluster's processes on machines, the head last, and say whether there were any.

    Raises:
        ClusterError: machines that are not reached; the others are done.
    """
    was_there, refused = False, []
    for machine in reversed(ending):
        try:
            was_there |= machine.ask("end", folder=folder_of(name), ray_temp=ray_temp, kept=KEPT)["was_there"]
        except ClusterError as exc:
            refused.append(exc)
    if refused:
        folder = records.cluster_folder(name)
        raise ClusterError(
            refused[0].problem, f"Ask again when it is reached. If it is gone for good, forget the cluster: rm -r {folder}"
        )
    return was_there


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
        "elsewhere": True,
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


def _tail(logs: dict[str, list[str]]) -> str:
    return "\n".join(f"{name} | {line}" for name, lines in logs.items() for line in lines)
