"""Machines on this machine, which ssh reaches: each a network namespace with files and processes of its own.

They hang on a switch, which is a bridge in a namespace of its own; so does this machine, at ``.254``. A link can be cut,
healed and made slow, and a machine can be killed with all that runs on it. Shared with this machine are the installed
programs and /dev/shm; one that is made of an image may change the programs too, which nobody else sees. All of it ends with
the process that made it, however that ends.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

WAIT_S = 20
NEEDED = ("ip", "nsenter", "setpriv", "unshare", "tc", "ssh", "ssh-keygen", "/usr/sbin/sshd")
HOME = "/mnt"  # each machine has its own folder there

SSHD = """Port 22
ListenAddress {address}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
LogLevel ERROR
SetEnv UV_OFFLINE=1 HOME={home} TMPDIR={home} PATH={folder}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
"""

SUDO = """#!/bin/sh
# A stand-in: whoever comes by ssh may do all, but shut down: that is only noted, for this machine would be meant too.
[ "$1" = -n ] && shift
if [ "$1" = shutdown ]; then exec touch "$HOME/off"; fi
exec "$@"
"""

CLIENT = """Host {subnet}.*
  User root
  IdentityFile {folder}/key
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known_hosts
  StrictHostKeyChecking yes
"""

ENDS_WITH_US = ["setpriv", "--pdeathsig", "KILL"]
MACHINE = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
PROBE = f"""mount --bind /tmp {HOME}
ip link add br0 type bridge
ip link add one type veth peer name two
tc qdisc add dev one root tbf rate 2mbit burst 32k latency 100ms"""
FIRST = 'mount --bind "$0" "$1" && exec /usr/sbin/sshd -D -e -f "$2"'
OWN_ROOT = """set -e
mkdir -p "$3/upper" "$3/work" "$3/root"
mount -t overlay overlay -o lowerdir=/,upperdir="$3/upper",workdir="$3/work" "$3/root"
for each in proc dev sys; do mount --rbind "/$each" "$3/root/$each"; done
mount --bind "$0" "$3/root$1"
grep -q ^ubuntu: "$3/root/etc/passwd" || echo "ubuntu:x:0:0::$1:/bin/bash" >> "$3/root/etc/passwd"
exec chroot "$3/root" /usr/sbin/sshd -D -e -f "$2"
"""


def missing() -> str:
    """Say why machines cannot be made here; empty when they can."""
    lacking = [name for name in NEEDED if not shutil.which(name)]
    if lacking:
        return f"needs {', '.join(lacking)} (Debian: openssh-server, openssh-client, iproute2, util-linux)"
    allowed = subprocess.run([*MACHINE, "--net", "sh", "-ec", PROBE], capture_output=True, text=True, check=False)
    return f"needs root and a kernel that makes namespaces: {allowed.stderr.strip()}" if allowed.returncode else ""


class Space:
    """A network namespace, there for as long as its keeper runs; ``pid`` is the keeper's."""

    def __init__(self) -> None:
        command = [*ENDS_WITH_US, "unshare", "--net", "sh", "-c", "echo; exec sleep infinity"]
        self._keeper = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert self._keeper.stdout is not None
        self._keeper.stdout.readline()
        self.pid = self._keeper.pid
        self.ip("link", "set", "lo", "up")

    def command(self, *words: str) -> list[str]:
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", *words]

    def ip(self, *words: str) -> None:
        _run(*self.command("ip", *words))

    def processes(self) -> Iterator[tuple[int, str]]:
        """Give the processes in it, by id and command."""
        if self._keeper.poll() is not None:
            return
        mine = os.readlink(f"/proc/{self.pid}/ns/net")
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            with suppress(OSError):
                if pid != self.pid and os.readlink(f"/proc/{pid}/ns/net") == mine:
                    yield pid, Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()

    def close(self) -> None:
        self._keeper.kill()
        self._keeper.communicate()


class Host:
    """One machine, running until it is killed or its network ends."""

    def __init__(self, network: Network, number: int, image: Path | None) -> None:
        self.address = f"{network.subnet}.{number}"
        self._root = network.folder / f"root-{number}" if image else None
        self.folder = network.folder / str(number)
        self.folder.mkdir()
        for each in image.iterdir() if image else ():
            (self.folder / each.name).symlink_to(each)
        self._space, self._link = Space(), Link(network.switch, f"host{number}")
        self._link.lead(self.address, "eth0", self._space)
        self._config = network.folder / f"sshd-{number}"
        self._config.write_text(SSHD.format(address=self.address, folder=network.folder, home=HOME))
        self.start()

    def start(self) -> None:
        """Switch it on, with the files that it had."""
        first = ["sh", "-c", OWN_ROOT if self._root else FIRST, str(self.folder), HOME, str(self._config), str(self._root)]
        with (self.folder / "sshd.log").open("ab") as log:
            command = self._space.command(*ENDS_WITH_US, *MACHINE, *first)
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + WAIT_S
        while True:
            with suppress(OSError), socket.create_connection((self.address, 22), timeout=1):
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / "sshd.log").read_text())
            time.sleep(0.02)

    def wants_off(self) -> bool:
        """Say, once, whether it was told to shut down."""
        off = self.folder / "off"
        asked = off.exists()
        off.unlink(missing_ok=True)
        return asked

    def kill(self) -> None:
        """End everything that runs on it, at once."""
        self._process.kill()
        self._process.wait()
        while any(line for _, line in self._space.processes()):
            time.sleep(0.01)

    def call(self, address: str) -> None:
        """Give it a further address, at which all others of the switch that have one reach it, as its own in the world."""
        self._space.ip("addr", "add", f"{address}/16", "dev", "eth0")
        self._space.ip("route", "add", "default", "dev", "eth0", "src", address)  # which leads nowhere

    def cut(self) -> None:
        """Let no packet in or out; nobody is told."""
        self._link.set("down")

    def heal(self) -> None:
        self._link.set("up")

    def slow(self, rate: str) -> None:
        """Let no more leave it than a rate as ``tc`` writes it."""
        limit = ["root", "tbf", "rate", rate, "burst", "32k", "latency", "100ms"]
        _run(*self._space.command("tc", "qdisc", "replace", "dev", "eth0", *limit))

    def fast(self) -> None:
        """Take the limit away."""
        _run(*self._space.command("tc", "qdisc", "del", "dev", "eth0", "root"))

    def processes(self, word: str = "") -> dict[int, str]:
        """Give what runs on it and has a word in its command, by id, without its first ones and what answers ssh.

        A ``cat`` is the far end of a way that a person holds open.
        """
        found = {pid: line for pid, line in self._space.processes() if line and "sshd" not in line and line != "cat "}
        return {pid: line for pid, line in found.items() if word in line and not line.startswith(("unshare", "setpriv"))}

    def left(self, *, within_s: float = 10) -> list[str]:
        """Give what still runs on it after a while: Ray's agents end when they see that their raylet has."""
        deadline = time.monotonic() + within_s
        while (found := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return list(found.values())

    def strike(self, word: str) -> None:
        """Kill what has a word in its command."""
        for pid in self.processes(word):
            os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        self.kill()
        self._space.close()


class Link:
    """A cable from the switch."""

    def __init__(self, switch: Space, name: str) -> None:
        self._switch, self._name = switch, name

    def lead(self, address: str, device: str, space: Space | None = None) -> None:
        """Lead it into a namespace, or to this machine, as a device with an address."""
        end = ["name", device, "netns", str(space.pid if space else os.getpid())]
        self._switch.ip("link", "add", self._name, "type", "veth", "peer", *end)
        self._switch.ip("link", "set", self._name, "master", "br0", "up")
        for words in (["addr", "add", f"{address}/24", "dev", device], ["link", "set", device, "up"]):
            space.ip(*words) if space else _run("ip", *words)

    def set(self, state: str) -> None:
        self._switch.ip("link", "set", self._name, state)


class Network:
    """Machines on one switch; ``config`` is the file by which ssh reaches them, ``driver`` the cable of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.subnet = f"10.{64 + secrets.randbelow(60)}.{secrets.randbelow(250)}"
        self.config = folder / "config"
        self.config.write_text(CLIENT.format(subnet=self.subnet, folder=folder))
        for key in ("key", "host_key"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key))
        (folder / "bin").mkdir()
        (folder / "bin/sudo").write_text(SUDO)
        (folder / "bin/sudo").chmod(0o755)
        self.hosts: list[Host] = []
        self.switch = Space()
        self.switch.ip("link", "add", "br0", "type", "bridge")
        self.switch.ip("link", "set", "br0", "up")
        self.driver = Link(self.switch, "driver")
        self.driver.lead(f"{self.subnet}.254", f"rk{secrets.token_hex(3)}")

    def add(self, image: Path | None = None) -> Host:
        """Add a machine. One of an image has what is in that folder in its home, and a user ``ubuntu``, who may do all there."""
        number = len(self.hosts) + 1
        with (self.folder / "known_hosts").open("a") as known:
            known.write(f"{self.subnet}.{number} {(self.folder / 'host_key.pub').read_text()}")
        self.hosts.append(Host(self, number, image))
        return self.hosts[-1]

    def close(self) -> None:
        """End all machines and the switch, with their links."""
        for host in self.hosts:
            host.close()
        self.switch.close()


@contextmanager
def network(folder: Path, num_hosts: int) -> Iterator[Network]:
    """Give machines on one switch; nothing of them is left after the block but what is in their folder."""
    folder.mkdir()
    Path("/run/sshd").mkdir(exist_ok=True)
    made = Network(folder)
    try:
        for _ in range(num_hosts):
            made.add()
        yield made
    finally:
        made.close()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
