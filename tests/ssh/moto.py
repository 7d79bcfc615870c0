"""Amazon's cloud as moto serves it on loopback, whose instances are machines of :mod:`tests.ssh.hosts`.

What moto makes is a record. A stand-in of a hypervisor switches the machine of an instance on and off, and ssh finds it by
the instance's address through a proxy command.
"""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.ssh import hosts
from tests.ssh.hosts import Host, Network

WAIT_S = 60
REGION, IMAGE = "us-west-2", "ami-12c6146b"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": REGION}

PROXY = """import json, socket, sys, threading
address = json.load(open(sys.argv[1])).get(sys.argv[2])
if address is None:
    sys.exit(f"no machine at {sys.argv[2]}")
link = socket.create_connection((address, 22), timeout=5)
link.settimeout(None)

def back():
    while data := link.recv(65536):
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

threading.Thread(target=back, daemon=True).start()
while data := sys.stdin.buffer.raw.read(65536):
    link.sendall(data)
"""

CONFIG = """Host *
  IdentityFile {folder}/key
  IdentitiesOnly yes
  ProxyCommand {python} {folder}/proxy.py {folder}/addresses %h
"""


def missing() -> str:
    """Say why there is no such cloud here; empty when there can be one."""
    lacking = [name for name in ("moto", "boto3") if find_spec(name) is None]
    return f"needs {' and '.join(lacking)}: pip install 'moto[server,ec2]' boto3" if lacking else hosts.missing()


class Hypervisor:
    """Gives each instance a machine, by their order, and has it run as long as the instance does."""

    def __init__(self, network: Network, url: str, image: Path | None) -> None:
        import boto3

        self._network, self._machines, self._image = network, {}, image
        self.ec2 = boto3.client("ec2", region_name=REGION, endpoint_url=url)
        self.config = network.folder / "aws-config"
        self._addresses = network.folder / "addresses"
        self._addresses.write_text("{}")
        (network.folder / "proxy.py").write_text(PROXY)
        self.config.write_text(CONFIG.format(folder=network.folder, python=sys.executable))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="hypervisor")

    def instances(self, *states: str) -> list[dict[str, Any]]:
        """Give the instances in these states, or all."""
        filters = [{"Name": "instance-state-name", "Values": list(states)}] if states else []
        found = self.ec2.describe_instances(Filters=filters)["Reservations"]
        return [instance for each in found for instance in each["Instances"]]

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        on: set[str] = set()
        while not self._ended.wait(0.1):
            for instance in self.instances():
                name, runs = instance["InstanceId"], instance["State"]["Name"] == "running"
                if runs and name not in self._machines:
                    self._machines[name] = self._new(instance)
                    on.add(name)
                elif runs and name not in on:
                    self._machines[name].start()
                    on.add(name)
                elif runs and self._machines[name].wants_off():
                    self.ec2.stop_instances(InstanceIds=[name])
                elif not runs and name in on:
                    self._machines[name].kill()
                    on.discard(name)
            there = {
                instance[kind]: self._machines[instance["InstanceId"]].address
                for instance in self.instances("running")
                for kind in ("PublicIpAddress", "PrivateIpAddress")
                if instance["InstanceId"] in on and kind in instance
            }
            draft = self._addresses.with_suffix(".new")
            draft.write_text(json.dumps(there))
            draft.replace(self._addresses)

    def _new(self, instance: dict[str, Any]) -> Host:
        """Make a machine, with the address and the keys that its cloud gives it."""
        told = self.ec2.describe_instance_attribute(InstanceId=instance["InstanceId"], Attribute="userData")["UserData"]
        first = base64.b64decode(told.get("Value", "")).decode()
        with (self._network.folder / "key.pub").open("a") as keys:
            keys.writelines(f"{key}\n" for key in re.findall(r"ssh-(?:rsa|ed25519) \S+", first))
        machine = self._network.add(self._image)
        machine.call(instance["PrivateIpAddress"])
        return machine


@contextmanager
def cloud(network: Network, setenv: Callable[[str, str], None], image: Path | None = None) -> Iterator[Hypervisor]:
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
        hypervisor = Hypervisor(network, url, image)
        hypervisor.start()
        try:
            yield hypervisor
        finally:
            hypervisor.stop()
    finally:
        server.terminate()
        server.wait()
