"""A cluster on this machine: a lean Ray head in a session of its own, its further nodes, its hub.

The head listens on loopback only, with a token on. Nothing of it is a child that a kernel's death would take along.
What a call starts and does not finish, it ends.
"""

from __future__ import annotations

import math
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import psutil

from raykit.cluster import processes
from raykit.cluster import record as records
from raykit.cluster.base import UP_TIMEOUT_S, Plan, Provider, Started, Status, Told, refuse_difference, versions_here
from raykit.cluster.home import new_ray_temp, private_folder, write_secret
from raykit.cluster.processes import BLOCK, node_label
from raykit.cluster.record import ClusterRecord, LocalRecord, ProcessMark
from raykit.errors import ClusterError
from raykit.spec import ClusterSpec
from raykit.wire import buffers
from raykit.wire.door import Door, DoorClosedError

SUPPORTED_RAY = "2.60."
DOWN_TIMEOUT_S = 4.0
NODES_TIMEOUT_S = 60.0


class Local(Provider):
    """This machine."""

    def plan(self, spec: ClusterSpec) -> Plan:
        slots = f"{processes.num_cpus(spec):g} CPUs, an object store of {processes.object_store_bytes(spec) / 1e6:.0f} MB"
        nodes = [(f"node {number}", f"{slots}, on loopback only") for number in range(1, spec.max_nodes + 1)]
        folder = str(records.cluster_folder(spec.name))
        things = (*nodes, ("hub", "a door on loopback, with a token"), ("folder", folder))
        return Plan(name=spec.name, things=things, price="It costs nothing but this machine's time.")

    def up(self, spec: ClusterSpec, *, told: Told, timeout_s: float = UP_TIMEOUT_S) -> Started:  # noqa: ARG002  (up in seconds)
        check_environment()
        with records.locked(spec.name):
            found = _find(spec.name)
            if found and found.is_alive():
                refuse_difference(found, spec)
                _wait_for_door(found, timeout_s)
                return found, "is up already"
            word = "is up"
            if found:
                _end(found.name, found.ray_temp)
                word = "is up anew: the head of the earlier one had died; its runs are still listed by %ray runs"
            return _start(spec, time.monotonic() + timeout_s), word

    def status(self, record: ClusterRecord) -> Status:
        assert isinstance(record, LocalRecord)
        if record.is_alive():
            return Status(state="up")
        return Status(state="gone", why=f"its head died (process {record.head.pid})")

    def scale(self, record: ClusterRecord, num_nodes: int | tuple[int, int]) -> ClusterRecord:
        """Start further nodes, or end those of the highest numbers. The first one has the head and stays."""
        wanted = replace(record.spec, num_nodes=num_nodes)
        with records.locked(record.name):
            found = _find(record.name)
            if found is None or not found.is_alive():
                raise ClusterError(f"The cluster {record.name} is not up.", f"Start it: %ray up {record.name}")
            _end_nodes(found, above=wanted.max_nodes)
            with _nodes_ended_on_error(found):
                joining = _start_nodes(found, up_to=wanted.max_nodes)
                _wait_for_nodes(found, joining, time.monotonic() + NODES_TIMEOUT_S)
            scaled = replace(found, spec=wanted)
            scaled.save()
            return scaled

    def suspend(self, record: ClusterRecord) -> None:
        raise ClusterError(
            f"The cluster {record.name} is on this machine, where nothing is given back by suspending it.",
            f"End it: %ray down {record.name}",
        )

    def down(self, name: str) -> bool:
        """End every process of it."""
        with records.locked(name):
            found = _find(name)
            if found is None and not records.processes(name):
                return False
            if found:
                with suppress(psutil.NoSuchProcess):
                    if found.is_alive():
                        psutil.Process(found.head.pid).terminate()
            _end(name, found.ray_temp if found else None)
            if found:
                found.remove()
            buffers.prune(records.cluster_folder(name) / buffers.FOLDER, kept_bytes=0, unused_before_unix_s=math.inf)
            return True

    def logs(self, record: ClusterRecord, *, tail: int = 200) -> str:
        files = sorted(record.folder.glob("*.log"))
        lines = ((file.stem, line) for file in files for line in file.read_text(errors="replace").splitlines()[-tail:])
        return "\n".join(f"{part} | {line}" for part, line in lines)

    def connect(self, record: ClusterRecord) -> LocalWay:
        assert isinstance(record, LocalRecord)
        return LocalWay(url=record.door_url)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalWay:
    """The door is on this machine already."""

    url: str

    def close(self) -> None:
        """There is nothing to close."""


def check_environment() -> None:
    """Refuse an environment in which no head could start.

    Raises:
        ClusterError: ray is missing or of another version.
    """
    try:
        found = version("ray")
    except ImportError as exc:
        raise ClusterError(
            "Ray is not installed in this environment.", f"Install it: pip install 'ray[default]=={SUPPORTED_RAY}*'"
        ) from exc
    if not found.startswith(SUPPORTED_RAY):
        raise ClusterError(
            f"Ray {found} is installed; this raykit works with {SUPPORTED_RAY}x.",
            f"Install it: pip install 'ray[default,data,train,serve]=={SUPPORTED_RAY}*'",
        )


def _find(name: str) -> LocalRecord | None:
    found = records.find(name)
    return found if isinstance(found, LocalRecord) else None


def _start(spec: ClusterSpec, deadline: float) -> LocalRecord:
    folder = private_folder(records.cluster_folder(spec.name))
    private_folder(folder / "runs")
    token_file = folder / "token"
    write_secret(token_file, secrets.token_hex(32))
    ray_temp = new_ray_temp()
    environment = processes.environment(spec, folder, token_file)
    with _ended_on_error(spec.name, ray_temp):
        ports = processes.free_ports()
        head = processes.spawn(processes.head_command(spec, ports, ray_temp), environment, folder / "head.log")
        started = LocalRecord(
            spec=spec,
            head=ProcessMark.of(head.pid),
            gcs_address=f"127.0.0.1:{ports.gcs}",
            door_url=f"http://127.0.0.1:{ports.door}",
            dashboard_url=f"http://127.0.0.1:{ports.dashboard}" if spec.dashboard else None,
            token_file=str(token_file),
            ray_temp=str(ray_temp),
            **versions_here(),
        )
        hub = processes.spawn(processes.hub_command(started, ports.door), environment, folder / "hub.log")
        nodes = _start_nodes(started, up_to=spec.max_nodes)
        _wait_for_door(started, deadline - time.monotonic(), maker=hub)
        _wait_for_nodes(started, nodes, deadline)
        started.save()
    return started


def _start_nodes(cluster: LocalRecord, *, up_to: int) -> dict[Path, subprocess.Popen[bytes]]:
    """Start the further nodes that are not there, and give their processes by log."""
    there = {number for number, _ in _further_nodes(cluster)}
    environment = processes.environment(cluster.spec, cluster.folder, Path(cluster.token_file))
    joining = {}
    for number in sorted(set(range(2, up_to + 1)) - there):
        log = cluster.folder / f"node-{number}.log"
        joining[log] = processes.spawn(processes.further_command(cluster.spec, cluster, number), environment, log)
    return joining


def _further_nodes(cluster: LocalRecord) -> list[tuple[int, psutil.Process]]:
    """Give the wrappers of `ray start` of all nodes but the first, with their numbers."""
    found = []
    for process in records.processes(cluster.name):
        with suppress(psutil.Error):
            words = process.cmdline()
            number = max(map(node_label, words), default=0) if BLOCK in words else 0
            if number > 1:
                found.append((number, process))
    return found


def _end_nodes(cluster: LocalRecord, *, above: int) -> None:
    """End further nodes in order: Ray takes a node whose wrapper is told to end out of the cluster."""
    ending = [process for number, process in _further_nodes(cluster) if number > above]
    for process in ending:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGTERM)
    for process in psutil.wait_procs(ending, timeout=DOWN_TIMEOUT_S)[1]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


@contextmanager
def _nodes_ended_on_error(cluster: LocalRecord) -> Iterator[None]:
    try:
        yield
    except BaseException:
        _end_nodes(cluster, above=cluster.spec.max_nodes)
        raise


def _wait_for_door(cluster: LocalRecord, timeout_s: float, *, maker: subprocess.Popen[bytes] | None = None) -> None:
    """Wait until the hub answers; ``maker`` is the program that makes it, where it is still at work."""
    with closing(Door(cluster.door_url, cluster.token)) as door:

        def answers() -> bool:
            if maker is not None and maker.poll():
                raise ClusterError(f"The hub of {cluster.name} did not start.", _tail(cluster.folder / "hub.log"))
            with suppress(DoorClosedError):
                return bool(door.ping(timeout_s=5))
            return False

        _wait(answers, cluster, time.monotonic() + timeout_s, "its door to answer")


def _wait_for_nodes(cluster: LocalRecord, nodes: dict[Path, subprocess.Popen[bytes]], deadline: float) -> None:
    """Wait until every further node is one of the cluster's; ``nodes`` are their processes by log."""
    if not nodes:
        return
    with closing(Door(cluster.door_url, cluster.token)) as door:

        def all_joined() -> bool:
            for log, process in nodes.items():
                if process.poll() is not None:
                    raise ClusterError(f"A further node of {cluster.name} ended while it started.", _tail(log))
            alive = {node.labels.get("raykit.io/node") for node in door.status().nodes if node.alive}
            return all(log.stem.removeprefix("node-") in alive for log in nodes)

        _wait(all_joined, cluster, deadline, "its further nodes to join")


def _wait(ready: Callable[[], bool], cluster: LocalRecord, deadline: float, what: str) -> None:
    while not ready():
        if not cluster.is_alive():
            raise ClusterError(f"The head of {cluster.name} ended while it started.", _tail(cluster.folder / "head.log"))
        if time.monotonic() > deadline:
            raise ClusterError(f"The cluster {cluster.name} was given up waiting for {what}.", _tail(cluster.folder / "hub.log"))
        time.sleep(0.02)


@contextmanager
def _ended_on_error(name: str, ray_temp: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:  # an interrupt too must leave nothing behind
        _end(name, str(ray_temp))
        raise


def _end(name: str, ray_temp: str | None) -> None:
    """End every process of the cluster, first by asking, and remove its sockets and its token."""
    asked = records.processes(name)
    for process in asked:
        with suppress(psutil.NoSuchProcess):
            # The wrappers of `ray start` end their nodes in order; workers end with their raylet.
            if BLOCK in process.cmdline():
                process.send_signal(signal.SIGTERM)
    psutil.wait_procs(asked, timeout=DOWN_TIMEOUT_S)
    while left := [*records.processes(name), *(records.agents(ray_temp) if ray_temp else ())]:
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=1)
    processes.reap()
    (records.cluster_folder(name) / "token").unlink(missing_ok=True)
    if ray_temp:
        shutil.rmtree(ray_temp, ignore_errors=True)
        with suppress(OSError):
            Path(ray_temp).parent.rmdir()


def _tail(log: Path, lines: int = 15) -> str:
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return f"Its log {log} cannot be read."
    return f"The end of {log}:\n" + "\n".join(text.splitlines()[-lines:])
