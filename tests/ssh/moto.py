"""Amazon's cloud as moto serves it on loopback, whose instances are machines of :mod:`tests.ssh.hosts`.

What moto makes is a record; :mod:`tests.ssh.hypervisor` makes the machines.
"""

from __future__ import annotations

import base64
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.ssh import hosts
from tests.ssh.hosts import Network
from tests.ssh.hypervisor import Hypervisor, Instance

WAIT_S = 60
REGION, IMAGE = "us-west-2", "ami-12c6146b"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": REGION}


def missing() -> str:
    """Say why there is no such cloud here; empty when there can be one."""
    lacking = [name for name in ("moto", "boto3") if find_spec(name) is None]
    return f"needs {' and '.join(lacking)}: pip install 'moto[server,ec2]' boto3" if lacking else hosts.missing()


class Ec2(Hypervisor):
    """The hypervisor of what moto has written down."""

    def __init__(self, network: Network, url: str, image: Path | None) -> None:
        import boto3

        super().__init__(network, image)
        self.ec2 = boto3.client("ec2", region_name=REGION, endpoint_url=url)

    def instances(self, *states: str) -> list[dict[str, Any]]:
        """Give the instances in these states, or all."""
        filters = [{"Name": "instance-state-name", "Values": list(states)}] if states else []
        found = self.ec2.describe_instances(Filters=filters)["Reservations"]
        return [instance for each in found for instance in each["Instances"]]

    def wanted(self) -> list[Instance]:
        return [
            Instance(
                name=each["InstanceId"],
                runs=each["State"]["Name"] == "running",
                addresses=tuple(each[kind] for kind in ("PrivateIpAddress", "PublicIpAddress") if kind in each),
            )
            for each in self.instances("pending", "running", "stopping", "stopped")
        ]

    def running(self) -> list[str]:
        return [each["InstanceId"] for each in self.instances("running")]

    def stopped(self) -> list[str]:
        return [each["InstanceId"] for each in self.instances("stopped")]

    def keys(self, name: str) -> list[str]:
        told = self.ec2.describe_instance_attribute(InstanceId=name, Attribute="userData")["UserData"]
        return re.findall(r"ssh-(?:rsa|ed25519) \S+", base64.b64decode(told.get("Value", "")).decode())

    def went_off(self, name: str) -> None:
        self.ec2.stop_instances(InstanceIds=[name])

    def is_on(self, name: str) -> None:
        """Moto knows it before."""

    def is_off(self, name: str) -> None:
        """Moto knows it before."""


@contextmanager
def cloud(network: Network, setenv: Callable[[str, str], None], image: Path | None = None) -> Iterator[Ec2]:
    """Serve EC2 on loopback for the block; ``setenv`` is given what reaches it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    for name, value in (CREDENTIALS | {"AWS_ENDPOINT_URL": url, "HOME": str(network.folder)}).items():
        setenv(name, value)
    with (network.folder / "moto.log").open("w") as log:
        command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        checked = os.environ | {"MOTO_ENABLE_AMI_VALIDATION": "true"}
        server = subprocess.Popen(command, stdout=log, stderr=log, env=checked)
    try:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline and server.poll() is None:
            with suppress(OSError):
                urllib.request.urlopen(f"{url}/moto-api/", timeout=2).close()
                break
            time.sleep(0.1)
        hypervisor = Ec2(network, url, image)
        hypervisor.start()
        try:
            yield hypervisor
        finally:
            hypervisor.stop()
    finally:
        server.terminate()
        server.wait()
