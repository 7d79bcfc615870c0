"""A look at this machine: what is here, what will not work, and the line that mends it."""

from __future__ import annotations

import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import httpx
import psutil

from raykit.client import session
from raykit.client.cluster import Cluster, health_of
from raykit.cluster import record as records
from raykit.cluster.home import data_home
from raykit.cluster.local import SUPPORTED_RAY

PACKAGES = ("raykit", "ray", "torch", "jupyterlab", "ipywidgets", "anywidget", "nvidia-ml-py")
LEAST_FREE_DISK_BYTES = 5_000_000_000
LEAST_FREE_MEMORY_BYTES = 1_500_000_000
LEAST_SHM_BYTES = 100_000_000
PROBE_TIMEOUT_S = 1.0
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (looked at, not written to)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at. ``remedy`` is empty where nothing is wrong."""

    what: str
    found: str
    good: bool
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What the doctor found."""

    findings: tuple[Finding, ...]

    @property
    def well(self) -> bool:
        return all(finding.good for finding in self.findings)

    def __repr__(self) -> str:
        lines = []
        for each in self.findings:
            lines.append(f"{'ok ' if each.good else '!! '} {each.what:<26} {each.found}")
            if each.remedy:
                lines.append(f"    {'':<26} → {each.remedy}")
        return "\n".join(lines)


def examine() -> Report:
    """Look at versions, devices, memory, disk and the ports of every cluster that is up; nothing is changed."""
    ports = [finding for cluster in session.clusters() if health_of(cluster).state == "up" for finding in _ports(cluster)]
    return Report((*_versions(), _gpus(), _memory(), _shared_memory(), _disk(), *ports))


def _versions() -> list[Finding]:
    here = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    findings = [Finding(what="Python", found=here, good=True)]
    for package in PACKAGES:
        try:
            findings.append(Finding(what=package, found=version(package), good=True))
        except PackageNotFoundError:
            findings.append(Finding(what=package, found="not installed", good=False, remedy=f"pip install {package}"))
    ray = next(each for each in findings if each.what == "ray")
    if ray.good and not ray.found.startswith(SUPPORTED_RAY):
        remedy = f"pip install 'ray[default,data,train,serve]=={SUPPORTED_RAY}*'"
        findings[findings.index(ray)] = Finding(what="ray", found=ray.found, good=False, remedy=remedy)
    return findings


def _gpus() -> Finding:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as exc:
        found = f"no NVIDIA GPU can be read ({exc})"
        return Finding(what="GPUs", found=found, good=True, remedy="to try GPU stages without one: %ray up sim --simulate-gpus 1")
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        names = [
            f"{pynvml.nvmlDeviceGetName(each)} {pynvml.nvmlDeviceGetMemoryInfo(each).total / 2**30:.0f} GiB" for each in handles
        ]
        return Finding(what="GPUs", found=", ".join(names) or "none", good=True)
    finally:
        pynvml.nvmlShutdown()


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    good = memory.available > LEAST_FREE_MEMORY_BYTES
    found = f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB available"
    return Finding(what="memory", found=found, good=good, remedy="" if good else "a smaller cluster: %ray up --profile small")


def _shared_memory() -> Finding:
    if not SHARED_MEMORY.is_dir():
        return Finding(what=str(SHARED_MEMORY), found="not there: the object store lies on disk", good=True)
    free = shutil.disk_usage(SHARED_MEMORY).free
    good = free > LEAST_SHM_BYTES
    remedy = "" if good else "docker run --shm-size=1g, or the object store lies on disk and is slow"
    return Finding(what=str(SHARED_MEMORY), found=f"{free / 1e9:.1f} GB free", good=good, remedy=remedy)


def _disk() -> Finding:
    home = data_home()
    free = shutil.disk_usage(home).free
    good = free > LEAST_FREE_DISK_BYTES
    found = f"{free / 1e9:.0f} GB free at {home}"
    return Finding(what="disk", found=found, good=good, remedy="" if good else "choose another place: export RAYKIT_HOME=/path")


def _ports(cluster: Cluster) -> list[Finding]:
    """Ask each listening port of the cluster's processes for a page without a token."""
    by_process: dict[str, list[tuple[str, int]]] = {}
    for process in records.processes(cluster.name):
        with suppress(psutil.Error):
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    by_process.setdefault(process.name(), []).append((connection.laddr.ip, connection.laddr.port))
    findings = []
    for name, ports in sorted(by_process.items()):
        for ip, port in sorted(set(ports), key=lambda each: each[1]):
            loopback = ip.removeprefix("::ffff:") in ("127.0.0.1", "::1")
            remedy = "" if loopback else f"%ray down {cluster.name}: this port is open to the network"
            findings.append(
                Finding(what=f"{cluster.name}, port {port}", found=f"{ip}, {name}: {_asks(port)}", good=loopback, remedy=remedy)
            )
    return findings


def _asks(port: int) -> str:
    try:
        answer = httpx.get(f"http://127.0.0.1:{port}/ping", timeout=PROBE_TIMEOUT_S, trust_env=False)
    except httpx.TransportError:
        return "not HTTP: Ray's gRPC asks for the token, torch's rendezvous in ray::Worker does not"
    if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return "asks for a token"
    return f"answers without a token ({answer.status_code})"
