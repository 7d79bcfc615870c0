"""Two machines that ssh reaches, and a home for each test."""

from __future__ import annotations

import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from raykit.spec import ClusterSpec
from tests.ssh import google, hosts, moto
from tests.ssh.google import Google
from tests.ssh.hosts import Network
from tests.ssh.hypervisor import Hypervisor
from tests.ssh.moto import Ec2


@pytest.fixture(scope="module")
def machines(raykit_home: Path) -> Iterator[Network]:
    """Two machines, for a module."""
    if lacking := hosts.missing():
        pytest.skip(lacking)
    with hosts.network(raykit_home / f"net-{secrets.token_hex(3)}", 2) as network:
        yield network


def options(network: Network, **more: Any) -> dict[str, Any]:
    """Give the options by which a small cluster is made of machines."""
    return {
        "place": "ssh",
        "hosts": tuple(host.address for host in network.hosts),
        "ssh_config": str(network.config),
        "python": sys.executable,
        "num_cpus": 1,
        "object_store_bytes": 80_000_000,
    } | more


def aws_options(rented: Ec2, **more: Any) -> dict[str, Any]:
    """Give the options by which a small cluster is made of Amazon's machines."""
    return _rented_options(rented, place="aws", region=moto.REGION, image=moto.IMAGE) | more


def gcp_options(rented: Google, **more: Any) -> dict[str, Any]:
    """Give the options by which a small cluster is made of Google's machines."""
    return _rented_options(rented, place="gcp", region=google.ZONE, image=google.IMAGE) | more


def _rented_options(rented: Hypervisor, **where: str) -> dict[str, Any]:
    return where | {
        "user": "root",
        "ssh_config": str(rented.config),
        "python": sys.executable,
        "num_cpus": 1,
        "num_nodes": 1,
        "object_store_bytes": 80_000_000,
    }


def sky_options(rented: Hypervisor, **more: Any) -> dict[str, Any]:
    """Give the options by which a small cluster is made of machines that SkyPilot rents."""
    return {
        "place": "sky",
        "infra": "aws",
        "ssh_config": str(rented.network.folder / "sky-config"),
        "python": sys.executable,
        "num_cpus": 1,
        "num_nodes": 1,
        "object_store_bytes": 80_000_000,
    } | more


@contextmanager
def interrupted_once(holds: Callable[[], Any]) -> Iterator[None]:
    """Press Ctrl-C in the block, once a condition holds."""

    is_over = threading.Event()

    def interrupt() -> None:
        while not holds():
            if is_over.wait(0.02):
                return
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    # Whoever runs these tests in the background has interrupts ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        signal.signal(signal.SIGINT, before)


@pytest.fixture
def spec(machines: Network) -> ClusterSpec:
    return ClusterSpec(name="lab", **options(machines))
