"""A machine that ssh reaches, or this one: what it is asked, and what it says when it cannot be."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from raykit.cluster.exchange import exchange
from raykit.errors import ClusterError
from raykit.spec import ClusterSpec
from raykit.spec.cluster import THIS_MACHINE

CONNECT_S = 8
ASK_S = 60.0
NOT_REACHED = 255  # the status with which ssh says that it could not do what was asked
NOT_FOUND = (126, 127)  # and with which a shell says so of a program

OPTIONS = [
    "BatchMode=yes",  # nobody is there to type a password
    f"ConnectTimeout={CONNECT_S}",
    "ServerAliveInterval=5",  # a link that was cut ends the connection after three of these
    "ServerAliveCountMax=2",
    "LogLevel=ERROR",
    "ControlMaster=no",  # one that stays behind would hold our pipes open
    "ExitOnForwardFailure=yes",
]
BOOT = "import json, sys; asked = json.load(sys.stdin); exec(asked.pop('program')); print(answer(**asked))"
"""Runs :mod:`there` on the other side, whose text comes with what is asked."""

REMEDIES = {
    "Host key verification failed": "Look at its key and accept it once, in a terminal: ssh {host} true",
    "Permission denied": "Name a key that it takes: --key FILE, or as IdentityFile in ~/.ssh/config. Passwords are not asked for.",
    "Could not resolve hostname": "Name it as ssh does: an address, or a Host of ~/.ssh/config.",
    "Connection refused": "Does its ssh server run, and at this port? ~/.ssh/config may name another one.",
    "timed out": "Is it on, and on a network that this machine reaches?",
    "No route to host": "Is it on, and on a network that this machine reaches?",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One machine of a cluster, by the name that a person gave it."""

    host: str
    python: str
    key: str = ""
    config: str = ""
    options: tuple[str, ...] = ()

    @property
    def is_here(self) -> bool:
        return self.host == THIS_MACHINE

    def ask(self, verb: str, *, timeout_s: float = ASK_S, **facts: Any) -> dict[str, Any]:
        """Have :mod:`there` do something on the machine, and give its answer.

        Raises:
            ClusterError: the machine is not reached, has no such Python, or could not do it.
        """
        command = [self.python, "-c", BOOT] if self.is_here else self.command(shlex.join([self.python, "-c", BOOT]))
        line = json.dumps({"program": _program(), "verb": verb, **facts})
        try:
            status, said, complaints = exchange(command, line, timeout_s)
        except FileNotFoundError as exc:
            raise ClusterError(f"There is no program {command[0]} on this machine.", self._without(command[0])) from exc
        except subprocess.TimeoutExpired as exc:
            raise ClusterError(
                f"{self.host} did not {verb} within {timeout_s:.0f} s.", "Is it very busy, or its disk full?"
            ) from exc
        if status:
            raise self.refusal(status, complaints)
        try:
            answer: dict[str, Any] = json.loads(said.strip().splitlines()[-1])  # a profile may print before it
        except (ValueError, IndexError) as exc:
            last = f"{said}{complaints}".strip()[-500:]
            raise ClusterError(f"{self.host} answered what raykit does not understand: {last}") from exc
        return answer

    def answers(self) -> bool:
        """Say whether ssh reaches it, whatever it has."""
        return subprocess.run(self.command("true"), stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0

    def command(self, words: str, *, options: Sequence[str] = ()) -> list[str]:
        """Give the command of this machine that runs a shell's words on it."""
        options = [*options, *(word for option in (*OPTIONS, *self.options) for word in ("-o", option))]
        options += ["-F", self.config] if self.config else []
        options += ["-i", self.key, "-o", "IdentitiesOnly=yes"] if self.key else []
        return ["ssh", *options, "-T", self.host, words]

    def refusal(self, status: int, said: str) -> ClusterError:
        """Give an error of how ssh, or what it ran, ended and what it said."""
        lines = [line for line in said.strip().splitlines() if line.strip()]
        last = lines[-1] if lines else f"status {status}, and no word"
        if status == NOT_REACHED and not self.is_here:
            remedy = next((words for sign, words in REMEDIES.items() if sign in said), "Try it in a terminal: ssh {host} true")
            return ClusterError(f"{self.host} is not reached by ssh: {last}", remedy.format(host=self.host))
        if status in NOT_FOUND:
            return ClusterError(f"{self.host} has no program {self.python}.", "Name its Python: --python PATH")
        return ClusterError(f"{self.host} could not do what was asked: {last}", "\n".join(lines[:-1][-10:]))

    def _without(self, program: str) -> str:
        return "Install OpenSSH's client." if program == "ssh" else f"Name the Python of this machine: --python {sys.executable}"


def machines(spec: ClusterSpec) -> list[Machine]:
    """Give all machines that a spec names, the head first."""
    for option, file in (("--key", spec.key), ("--ssh-config", spec.ssh_config)):
        if file and not Path(file).expanduser().is_file():
            raise ClusterError(f"{option} {file}: there is no such file.", "Name a file of this machine.")
    key, config = (str(Path(file).expanduser()) if file else "" for file in (spec.key, spec.ssh_config))
    return [
        Machine(host=host, python=spec.python or (sys.executable if host == THIS_MACHINE else "python3"), key=key, config=config)
        for host in spec.hosts
    ]


@cache
def _program() -> str:
    return (Path(__file__).parent / "there.py").read_text()


def ask_all(asked: Sequence[Machine], ask: Callable[[Machine], Any]) -> list[Any]:
    """Ask all machines at once, and give their answers in order."""
    with ThreadPoolExecutor(max_workers=max(1, len(asked))) as pool:
        return list(pool.map(ask, asked))
