"""A stand-in of a cloud's hypervisor: it gives each instance a machine of :mod:`tests.ssh.hosts`, and switches it on and off.

ssh finds a machine by its instance's address, through a proxy command.
"""

from __future__ import annotations

import json
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.ssh.hosts import Host, Network

LOOK_S = 0.1

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """What a cloud says of an instance: whether it is to run, and its addresses, that within the cloud first."""

    name: str
    runs: bool
    addresses: tuple[str, ...]


class Hypervisor(ABC):
    """Looks at the instances all the time while it is started."""

    def __init__(self, network: Network, image: Path | None = None) -> None:
        self.network = network
        self.config = network.folder / "cloud-config"
        self._machines, self._image = dict[str, Host](), image
        self._addresses = network.folder / "addresses"
        self._addresses.write_text("{}")
        (network.folder / "proxy.py").write_text(PROXY)
        self.config.write_text(CONFIG.format(folder=network.folder, python=sys.executable))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="hypervisor")

    @abstractmethod
    def wanted(self) -> list[Instance]:
        """Give the instances that there are."""

    @abstractmethod
    def running(self) -> list[str]:
        """Give the names of those whose machine runs."""

    @abstractmethod
    def stopped(self) -> list[str]:
        """Give the names of those whose machine has stopped, and can be started again."""

    @abstractmethod
    def keys(self, name: str) -> Sequence[str]:
        """Give the public keys that may log in to an instance."""

    @abstractmethod
    def went_off(self, name: str) -> None:
        """Know that a machine has shut itself down."""

    @abstractmethod
    def is_on(self, name: str) -> None:
        """Know that the machine of an instance runs."""

    @abstractmethod
    def is_off(self, name: str) -> None:
        """Know that the machine of an instance does not run any more."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        on: set[str] = set()
        while not self._ended.wait(LOOK_S):
            wanted = {instance.name: instance for instance in self.wanted()}
            for name, instance in wanted.items():
                if instance.runs and name not in on:
                    self._switch_on(instance)
                    on.add(name)
                elif instance.runs and self._machines[name].wants_off():
                    self.went_off(name)
            for name in [name for name in on if name not in wanted or not wanted[name].runs]:
                self._machines[name].kill()
                on.discard(name)
                self.is_off(name)
            there = {address: self._machines[name].address for name in on for address in wanted[name].addresses}
            draft = self._addresses.with_suffix(".new")
            draft.write_text(json.dumps(there))
            draft.replace(self._addresses)
            for name in on:
                self.is_on(name)

    def _switch_on(self, instance: Instance) -> None:
        """Start a machine, a new one with the address and the keys that its cloud gives it."""
        if instance.name in self._machines:
            self._machines[instance.name].start()
            return
        with (self.network.folder / "key.pub").open("a") as keys:
            keys.writelines(f"{key}\n" for key in self.keys(instance.name))
        machine = self._machines[instance.name] = self.network.add(self._image)
        machine.call(instance.addresses[0])
