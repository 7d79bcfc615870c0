"""Two machines that ssh reaches, and a home for each test."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator
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


@pytest.fixture
def spec(machines: Network) -> ClusterSpec:
    return ClusterSpec(name="lab", **options(machines))
