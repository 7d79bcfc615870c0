"""The processes of a cluster on this machine: their commands, their environment, their ports."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path

import psutil

from raykit.cluster.code import python_path_here
from raykit.cluster.record import MARK, LocalRecord
from raykit.spec import ClusterSpec
from raykit.spec.cluster import SMALL_CPUS, SMALL_OBJECT_STORE_BYTES

OBJECT_STORE_SHARE = 0.15  # of memory; Ray's own 0.3 leaves little for models on a machine of 8 GB
NODE, JOINED = "raykit.engine.node", "raykit.engine.joined"
BLOCK = "--block"  # the option by which `ray start` stays, and by which its processes are told from workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    gcs: int
    door: int
    dashboard: int
    agent_http: int
    agent_grpc: int
    runtime_env: int
    object_manager: int
    node_manager: int
    metrics: int


def settings(spec: ClusterSpec, token_file: str) -> dict[str, str]:
    """Give the environment of Ray's processes on machines that raykit starts them on."""
    return {
        "RAYKIT_SIMULATED_GPUS": str(spec.num_simulated_gpus),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": token_file,
        "RAY_USAGE_STATS_ENABLED": "0",
        # Without this a head that has an actor waits 30 s on SIGTERM.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        # Ray makes workers nicer when they have begun (15): each that starts would take the CPUs from those that train.
        "RAY_worker_niceness": "0",
        # Ray keeps 3.4 kB of each of the last 100,000 calls in the head's memory, for its dashboard.
        "RAY_task_events_report_interval_ms": "1000" if spec.dashboard else "0",
        # It keeps 100,000 actors that are gone, where a run that is struck each minute leaves thousands a day.
        "RAY_maximum_gcs_destroyed_actor_cached_count": "1000",
        # What one run gives back another has after some of these, not after 0.1 to 1 s.
        "RAY_raylet_report_resources_period_milliseconds": "5",
        "RAY_gcs_create_placement_group_retry_min_interval_ms": "10",
        "RAY_gcs_create_placement_group_retry_max_interval_ms": "20",
        "PYTHONSAFEPATH": "1",  # a file called like a standard module in the folder where a node starts stops no head
    }


def environment(spec: ClusterSpec, folder: Path, token_file: Path) -> dict[str, str]:
    """Give the environment of the processes of a cluster on this machine."""
    ours = {
        MARK: str(folder),
        # Ray's switch for "one machine only": with it every port of the head binds to loopback.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "PYTHONPATH": python_path_here(),
    }
    # The kernel's own settings that would mislead a worker: another cluster's address, a plotting backend of the page.
    theirs = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "MPLBACKEND", "JPY_PARENT_PID")}
    return theirs | settings(spec, str(token_file)) | ours


def head_command(spec: ClusterSpec, ports: Ports, ray_temp: Path) -> list[str]:
    return [*_local_node(spec, ports), *head_options(spec, ports, str(ray_temp)), _labels(1)]


def head_options(spec: ClusterSpec, ports: Ports, ray_temp: str) -> list[str]:
    """Give the options by which a node is a head, without what raykit has no use for."""
    return [
        "--head",
        f"--port={ports.gcs}",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={ports.dashboard}",
        f"--temp-dir={ray_temp}",
        "--no-monitor",
        f"--include-dashboard={str(spec.dashboard).lower()}",
    ]


def further_command(spec: ClusterSpec, head: LocalRecord, number: int) -> list[str]:
    return [*_local_node(spec, free_ports()), f"--address={head.gcs_address}", _labels(number)]


def _labels(number: int) -> str:
    return f"--labels=raykit.io/rack=rack-{number},raykit.io/node={number}"


def _local_node(spec: ClusterSpec, ports: Ports) -> list[str]:
    return [
        *node_command(spec, ports, python=sys.executable, address="127.0.0.1", program=NODE),
        f"--num-cpus={num_cpus(spec):g}",
        f"--object-store-memory={object_store_bytes(spec)}",
    ]


def node_label(word: str) -> int:
    """Give the number of the node that this word of a command labels, or 0."""
    return int(word.rpartition("=")[2]) if word.startswith("--labels=raykit.io/rack=") else 0


def node_command(spec: ClusterSpec, ports: Ports, *, python: str, address: str, program: str) -> list[str]:
    """Give what starts a node at an address, but for what it holds of the machine."""
    num_gpus = spec.num_simulated_gpus or spec.num_gpus
    return [
        *(python, "-m", program, BLOCK),
        "--disable-usage-stats",
        f"--node-ip-address={address}",
        f"--dashboard-agent-listen-port={ports.agent_http}",
        f"--dashboard-agent-grpc-port={ports.agent_grpc}",
        f"--runtime-env-agent-port={ports.runtime_env}",
        f"--object-manager-port={ports.object_manager}",
        f"--node-manager-port={ports.node_manager}",
        f"--metrics-export-port={ports.metrics}",
        # Zero lets workers take any free port: two heads on one host share no range.
        "--min-worker-port=0",
        "--max-worker-port=0",
        *([f"--num-gpus={num_gpus:g}"] if num_gpus is not None else []),
        *([] if spec.dashboard else ["--include-log-monitor=false"]),
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
    share = int(psutil.virtual_memory().total * OBJECT_STORE_SHARE / spec.max_nodes)
    return max(SMALL_OBJECT_STORE_BYTES, share)


def hub_command(cluster: LocalRecord, door_port: int) -> list[str]:
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


def spawn(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        log.chmod(0o600)
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, env=environment
        )
    _spawned.append(process)
    return process


_spawned: list[subprocess.Popen[bytes]] = []
"""Kept to be reaped: they outlive this process, and one that ends before it would stay as a zombie."""


def reap() -> None:
    """Let go of those that have ended."""
    _spawned[:] = [process for process in _spawned if process.poll() is None]


def free_ports() -> Ports:
    """Find ports that are free now; all are held open together, so that no two are the same."""
    with ExitStack() as held:
        ports = {}
        for each in fields(Ports):
            probe = held.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            ports[each.name] = probe.getsockname()[1]
        return Ports(**ports)
