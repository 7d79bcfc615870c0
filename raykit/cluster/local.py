"""A cluster on this machine: a lean Ray head in a session of its own, its further nodes, its hub.

The head listens on loopback only, with a token on. Nothing of it is a child that a kernel's death would take along.
Blocking throughout; what a call starts and does not finish, it ends.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path

import psutil

from raykit.cluster import record as records
from raykit.cluster.home import new_ray_temp, private_folder, write_secret
from raykit.cluster.record import MARK, ClusterRecord, ProcessMark
from raykit.errors import ClusterDiffersError, ClusterError
from raykit.spec import ClusterSpec
from raykit.spec.cluster import SMALL_CPUS, SMALL_OBJECT_STORE_BYTES
from raykit.wire.door import Door, DoorClosedError

SHIM = Path(__file__).parent / "shim"
SUPPORTED_RAY = "2.60."
OBJECT_STORE_SHARE = 0.15  # of memory; Ray's own 0.3 leaves little for models on a machine of 8 GB
UP_TIMEOUT_S = 120.0
DOWN_TIMEOUT_S = 4.0
BLOCK = "--block"  # the option by which `ray start` stays, and by which its processes are told from workers

Started = tuple[ClusterRecord, str]


def up(spec: ClusterSpec, *, timeout_s: float = UP_TIMEOUT_S) -> Started:
    """Give the cluster of that name, started if it is not there, and a word on what was found.

    Raises:
        ClusterDiffersError: it is up with other options; the difference is named.
        ClusterError: it cannot be started; nothing of it is left running.
    """
    check_environment()
    with records.locked(spec.name):
        found = records.find(spec.name)
        if found and found.is_alive():
            _refuse_difference(found, spec)
            _wait_for_door(found, timeout_s)
            return found, "is up already"
        word = "is up"
        if found:
            _end(found.name, found.ray_temp)
            word = "is up anew: the head of the earlier one had died; its runs are still listed by %ray runs"
        return _start(spec, time.monotonic() + timeout_s), word


def down(name: str) -> bool:
    """End a cluster and say whether there was one. Its log and its runs stay. Every process of it is gone on return."""
    with records.locked(name):
        found = records.find(name)
        if found is None and not records.processes(name):
            return False
        if found:
            with suppress(psutil.NoSuchProcess):
                if found.is_alive():
                    psutil.Process(found.head.pid).terminate()
        _end(name, found.ray_temp if found else None)
        if found:
            found.remove()
        return True


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


def difference(found: ClusterSpec, wanted: ClusterSpec) -> str:
    """Say in which options two specs differ: ``--cpus is 4, asked 8``; empty when they agree."""
    parts = []
    for each in fields(ClusterSpec):
        has, asked = getattr(found, each.name), getattr(wanted, each.name)
        if asked not in (has, each.default):
            parts.append(f"{each.metadata['option'][0][0]} is {has}, asked {asked}")
    return "; ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ports:
    gcs: int
    door: int
    dashboard: int
    agent_http: int
    agent_grpc: int
    runtime_env: int
    object_manager: int
    node_manager: int
    metrics: int


def _refuse_difference(found: ClusterRecord, wanted: ClusterSpec) -> None:
    this_python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if found.python_version != this_python:
        raise ClusterError(
            f"The cluster {found.name} runs Python {found.python_version}; this kernel is Python {this_python}, "
            "whose pickled code it cannot read.",
            f"Use a kernel of Python {found.python_version}, or: %ray down {found.name}, then %ray up {found.name}",
        )
    if said := difference(found.spec, wanted):
        raise ClusterDiffersError(
            f"The cluster {found.name} is up with other options: {said}.",
            f"Use it as it is (%ray use {found.name}), give the new one another name, or end it first: %ray down {found.name}",
        )


def _start(spec: ClusterSpec, deadline: float) -> ClusterRecord:
    folder = private_folder(records.cluster_folder(spec.name))
    private_folder(folder / "runs")
    token_file = folder / "token"
    write_secret(token_file, secrets.token_hex(32))
    ray_temp = new_ray_temp()
    environment = _environment(spec, folder, token_file)
    with _ended_on_error(spec.name, ray_temp):
        ports = _free_ports()
        head = _spawn(_head_command(spec, ports, ray_temp), environment, folder / "head.log")
        started = ClusterRecord(
            spec=spec,
            head=ProcessMark.of(head.pid),
            gcs_address=f"127.0.0.1:{ports.gcs}",
            door_url=f"http://127.0.0.1:{ports.door}",
            dashboard_url=f"http://127.0.0.1:{ports.dashboard}" if spec.dashboard else None,
            token_file=str(token_file),
            ray_temp=str(ray_temp),
            created_unix_s=time.time(),
            python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
            ray_version=version("ray"),
            raykit_version=version("raykit"),
        )
        hub = _spawn(_hub_command(started, ports.door), environment, folder / "hub.log")
        joining = {
            folder / f"node-{number}.log": _further_command(spec, started, number) for number in range(2, spec.num_nodes + 1)
        }
        nodes = {log: _spawn(command, environment, log) for log, command in joining.items()}
        _wait_for_door(started, deadline - time.monotonic(), maker=hub)
        _wait_for_nodes(started, nodes, deadline)
        started.save()
    return started


def _environment(spec: ClusterSpec, folder: Path, token_file: Path) -> dict[str, str]:
    ours = {
        MARK: str(folder),
        "RAYKIT_SIMULATED_GPUS": str(spec.num_simulated_gpus),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray's switch for "one machine only": with it every port of the head binds to loopback.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # Without this a head that has an actor waits 30 s on SIGTERM.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        # Ray makes workers nicer when they have begun (15): each that starts would take the CPUs from those that train.
        "RAY_worker_niceness": "0",
        # Ray keeps 3.4 kB of each of the last 100,000 calls in the head's memory, for its dashboard.
        "RAY_task_events_report_interval_ms": "1000" if spec.dashboard else "0",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(SHIM), os.environ.get("PYTHONPATH")])),
        "PYTHONSAFEPATH": "1",  # a file called like a standard module in the notebook's folder stops no head
    }
    # The kernel's own settings that would mislead a worker: another cluster's address, a plotting backend of the page.
    theirs = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "MPLBACKEND", "JPY_PARENT_PID")}
    return theirs | ours


def _head_command(spec: ClusterSpec, ports: _Ports, ray_temp: Path) -> list[str]:
    lean = ["--include-dashboard=false", "--include-log-monitor=false"]
    return [
        *_node_command(spec, ports),
        "--head",
        f"--port={ports.gcs}",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={ports.dashboard}",
        f"--temp-dir={ray_temp}",
        "--labels=raykit.io/rack=rack-1,raykit.io/node=1",
        "--no-monitor",
        *(["--include-dashboard=true"] if spec.dashboard else lean),
    ]


def _further_command(spec: ClusterSpec, head: ClusterRecord, number: int) -> list[str]:
    labels = f"--labels=raykit.io/rack=rack-{number},raykit.io/node={number}"
    return [*_node_command(spec, _free_ports()), f"--address={head.gcs_address}", labels]


def _node_command(spec: ClusterSpec, ports: _Ports) -> list[str]:
    num_gpus = spec.num_simulated_gpus or spec.num_gpus
    return [
        *(sys.executable, "-m", "raykit.engine.node", BLOCK),
        "--disable-usage-stats",
        "--node-ip-address=127.0.0.1",
        f"--dashboard-agent-listen-port={ports.agent_http}",
        f"--dashboard-agent-grpc-port={ports.agent_grpc}",
        f"--runtime-env-agent-port={ports.runtime_env}",
        f"--object-manager-port={ports.object_manager}",
        f"--node-manager-port={ports.node_manager}",
        f"--metrics-export-port={ports.metrics}",
        # Zero lets workers take any free port: two heads on one host share no range.
        "--min-worker-port=0",
        "--max-worker-port=0",
        f"--num-cpus={num_cpus(spec):g}",
        f"--object-store-memory={object_store_bytes(spec)}",
        *([f"--num-gpus={num_gpus:g}"] if num_gpus is not None else []),
    ]


def num_cpus(spec: ClusterSpec) -> float:
    """CPU slots of each node: as asked, or the CPUs that this process may use."""
    if spec.num_cpus is not None:
        return spec.num_cpus
    return SMALL_CPUS if spec.profile == "small" else len(psutil.Process().cpu_affinity() or range(os.cpu_count() or 1))


def object_store_bytes(spec: ClusterSpec) -> int:
    """Size of each node's object store: as asked, or a share of memory that leaves room for models."""
    if spec.object_store_bytes is not None:
        return spec.object_store_bytes
    if spec.profile == "small":
        return SMALL_OBJECT_STORE_BYTES
    share = int(psutil.virtual_memory().total * OBJECT_STORE_SHARE / spec.num_nodes)
    return max(SMALL_OBJECT_STORE_BYTES, share)


def _hub_command(cluster: ClusterRecord, door_port: int) -> list[str]:
    setting = {
        "name": cluster.name,
        "address": cluster.gcs_address,
        "port": door_port,
        "token_file": cluster.token_file,
        "folder": str(cluster.folder),
        "profile": cluster.spec.profile,
        "simulated_gpus": bool(cluster.spec.num_simulated_gpus),
        "sample_s": cluster.spec.sample_s,
    }
    return [sys.executable, "-m", "raykit.engine.start", json.dumps(setting)]


def _spawn(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        log.chmod(0o600)
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, env=environment
        )
    _spawned.append(process)
    return process


_spawned: list[subprocess.Popen[bytes]] = []
"""Kept to be reaped: they outlive this process, and one that ends before it would stay as a zombie."""


def _wait_for_door(cluster: ClusterRecord, timeout_s: float, *, maker: subprocess.Popen[bytes] | None = None) -> None:
    """Wait until the hub answers; ``maker`` is the program that makes it, where it is still at work."""
    with closing(Door(cluster.door_url, cluster.token)) as door:

        def answers() -> bool:
            if maker is not None and maker.poll():
                raise ClusterError(f"The hub of {cluster.name} did not start.", _tail(cluster.folder / "hub.log"))
            with suppress(DoorClosedError):
                return bool(door.ping(timeout_s=5))
            return False

        _wait(answers, cluster, time.monotonic() + timeout_s, "its door to answer")


def _wait_for_nodes(cluster: ClusterRecord, nodes: dict[Path, subprocess.Popen[bytes]], deadline: float) -> None:
    """Wait until every further node is one of the cluster's; ``nodes`` are their processes by log."""
    if not nodes:
        return
    with closing(Door(cluster.door_url, cluster.token)) as door:

        def all_joined() -> bool:
            for log, process in nodes.items():
                if process.poll() is not None:
                    raise ClusterError(f"A further node of {cluster.name} ended while it started.", _tail(log))
            return sum(node.alive for node in door.status().nodes) > len(nodes)

        _wait(all_joined, cluster, deadline, "its further nodes to join")


def _wait(ready: Callable[[], bool], cluster: ClusterRecord, deadline: float, what: str) -> None:
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
    while left := records.processes(name):
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=1)
    _spawned[:] = [process for process in _spawned if process.poll() is None]
    (records.cluster_folder(name) / "token").unlink(missing_ok=True)
    if ray_temp:
        shutil.rmtree(ray_temp, ignore_errors=True)
        with suppress(OSError):
            Path(ray_temp).parent.rmdir()


def _free_ports() -> _Ports:
    """Find ports that are free now; all are held open together, so that no two are the same."""
    with ExitStack() as held:
        ports = {}
        for each in fields(_Ports):
            probe = held.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            ports[each.name] = probe.getsockname()[1]
        return _Ports(**ports)


def _tail(log: Path, lines: int = 15) -> str:
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return f"Its log {log} cannot be read."
    return f"The end of {log}:\n" + "\n".join(text.splitlines()[-lines:])
