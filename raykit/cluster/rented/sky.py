"""The machines of one cluster in any cloud that SkyPilot reaches, through its own command, which has an environment of its own.

SkyPilot chooses cloud, zone and machine by price, and tries the next one where there are none left; it writes into ssh's
configuration how its machines are reached. A cluster is one thing to it: its machines are rented, started and stopped together.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raykit.cluster.base import versions_here
from raykit.cluster.exchange import exchange
from raykit.cluster.rented.cloud import Cloud, Rented
from raykit.cluster.ssh.machine import Machine
from raykit.cluster.ssh.sites import NEEDED
from raykit.errors import ClusterError
from raykit.spec import ClusterSpec

ASK_S = 180.0  # its server starts with the first question
RENT_S = 1800.0
REFUSED = "Connection refused"
MOST_WORDS = 1000  # characters of what it said
STATES = {"UP": "running", "INIT": "unfinished", "STOPPED": "stopped"}
"""How a cluster of SkyPilot is, in the words of this package."""

ENVIRONMENT = "/opt/raykit"
SETUP = """set -e
if [ ! -x {environment}/bin/python ]; then
  sudo mkdir -p {environment} && sudo chown "$(id -u)" {environment}
  ~/.local/bin/uv venv --python {python} {environment}
fi
~/.local/bin/uv pip install --python {environment}/bin/python {packages}
"""
"""What a machine does once: this notebook's Python and packages, by the uv that SkyPilot brings."""

REMEDIES = {
    "NoCloudAccessError": "Let SkyPilot reach a cloud, and see what it lacks: sky check",
    "ApiServerConnectionError": "Does its server run? See: sky api info",
    "ResourcesUnavailableError": "Ask for others (sky gpus list), anywhere (without --infra), or try later.",
    "CommandError": "See its log: sky logs --provision {name}",
}
"""What to do, by the name of SkyPilot's error."""


class SkyPilot(Cloud):
    """Its command is ``sky`` on the PATH, or the file that ``RAYKIT_SKY`` names."""

    what = "what SkyPilot finds cheapest"

    def __init__(self, spec: ClusterSpec) -> None:
        self._spec = spec
        self._name = f"raykit-{spec.name}"
        self.unreached = f"How SkyPilot reaches them stands in ~/.ssh/config; try: ssh {self._name}"

    def plan(self) -> tuple[list[tuple[str, str]], str]:
        said = self._launch(self._spec.max_nodes, "--dryrun")
        table = re.search(r"^Considered resources.*?(?=^(?!-| )|\Z)", said, re.MULTILINE | re.DOTALL)
        _, _, lines = (table[0] if table else said).strip().partition("\n")
        spot = " spot" if self._spec.spot else ""
        return [("machines", f"{self._spec.max_nodes}{spot}, as SkyPilot chooses them")], f"SkyPilot says, of an hour:\n{lines}"

    def look(self) -> list[Rented]:
        found = _json(self._sky("status", self._name, "--refresh", "--output", "json"))
        if not found:
            return []
        (cluster,) = found
        state = STATES.get(cluster["status"], cluster["status"].lower())
        names = [self._name, *(f"{self._name}-worker{number}" for number in range(1, cluster["nodes"] or 1))]
        return [Rented(id=name, number=number, state=state, address=name) for number, name in enumerate(names, start=1)]

    def rent(self, numbers: Sequence[int]) -> None:
        self._launch(max(numbers), *(["--resize"] if min(numbers) > 1 else []))

    def start(self, rented: Sequence[Rented]) -> None:
        self._launch(max(each.number for each in rented))

    def stop(self, rented: Sequence[Rented]) -> None:
        if rented:
            self._sky("stop", "--yes", self._name)

    def end(self, rented: Sequence[Rented]) -> None:
        first = min(each.number for each in rented)
        if first > 1:
            self._launch(first - 1, "--resize")
        else:
            self._sky("down", "--yes", self._name)

    def reached(self, rented: Rented) -> Machine:
        python = self._spec.python or f"{ENVIRONMENT}/bin/python"
        return Machine(host=rented.address, python=python, config=self._spec.ssh_config)

    def _launch(self, num_nodes: int, *options: str) -> str:
        """Have so many machines, and what they need once; those that are there stay.

        SkyPilot's server does it, and goes on when nobody waits any more: so it is told.
        """
        with tempfile.NamedTemporaryFile("w", prefix="rk-", suffix=".yaml") as file:
            json.dump(self._task(num_nodes), file)  # which is YAML too
            file.flush()
            try:
                asked = self._sky("launch", "--async", "--yes", "--cluster", self._name, *options, file.name)
                request = asked.rpartition("request: ")[2].split()[0]
                return self._said(*self._ask("api", "logs", request, timeout_s=RENT_S, only_looks=True), "launch")
            except BaseException:
                self._cancel()
                raise

    def _cancel(self) -> None:
        """Have the server leave what it still does about the cluster."""
        found = _json(self._sky("api", "status", "--cluster", self._name, "--output", "json"))
        if going_on := [each["request_id"] for each in found]:
            self._sky("api", "cancel", *going_on)

    def _task(self, num_nodes: int) -> dict[str, Any]:
        spec = self._spec
        resources = {
            "infra": spec.infra,
            "accelerators": str(spec.gpus_per_node or ""),
            "cpus": f"{spec.num_cpus:g}+" if spec.num_cpus else "",
            "memory": f"{spec.memory_bytes / 1e9:g}+" if spec.memory_bytes else "",
            "image_id": spec.image,
            "use_spot": spec.spot,
        }
        task: dict[str, Any] = {"num_nodes": num_nodes, "resources": {name: value for name, value in resources.items() if value}}
        return task if spec.python else task | {"setup": setup()}

    def _sky(self, *words: str) -> str:
        """Run SkyPilot's command, and give what it said."""
        status, said = self._ask(*words)
        if status and REFUSED in said:  # not each of its commands starts the server that it asks
            self._said(*self._ask("api", "start"), "start its server")
            status, said = self._ask(*words)
        return self._said(status, said, words[0])

    def _ask(self, *words: str, timeout_s: float = ASK_S, only_looks: bool = False) -> tuple[int, str]:
        try:
            status, said, complaints = exchange(self._command(*words), "", timeout_s, only_looks=only_looks)
        except subprocess.TimeoutExpired as exc:
            said = f"SkyPilot's command did not end within {timeout_s:.0f} s: sky {' '.join(words)}"
            raise ClusterError(said, "What does its server do? sky api status") from exc
        return status, f"{said}\n{complaints}"

    def _command(self, *words: str) -> list[str]:
        program = os.environ.get("RAYKIT_SKY") or shutil.which("sky")
        if not program or not Path(program).is_file():
            raise ClusterError(
                f"There is no program {program or 'sky'} on this machine.",
                "SkyPilot wants an environment of its own: python -m venv ~/sky && ~/sky/bin/pip install 'skypilot[aws]', "
                "then name its command: %env RAYKIT_SKY=/home/.../sky/bin/sky",
            )
        return ["env", "COLUMNS=200", program, *words]

    def _said(self, status: int, said: str, verb: str) -> str:
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said)
        if status:
            raise self._refusal(verb, plain)
        return plain

    def _refusal(self, verb: str, said: str) -> ClusterError:
        """Give an error of what SkyPilot said, by the last of its exceptions."""
        found = list(re.finditer(r"^sky\.exceptions\.(\w+): ", said, re.MULTILINE))
        if not found:
            return ClusterError(f"SkyPilot could not {verb}: {said.strip()[-MOST_WORDS:]}")
        words, kind = said[found[-1].end() :].strip()[:MOST_WORDS], found[-1][1]
        return ClusterError(f"SkyPilot refused: {words} ({kind})", REMEDIES.get(kind, "").format(name=self._name))


def _json(said: str) -> list[dict[str, Any]]:
    """Read the list that stands at the end of what SkyPilot said."""
    begin = said.index("\n[") if not said.startswith("[") else 0
    found: list[dict[str, Any]] = json.loads(said[begin:])
    return found


def setup() -> str:
    """Give the shell's words that bring a machine this notebook's Python and packages."""
    here = versions_here()
    packages = NEEDED | {"ray": f"'ray[default,data]=={here['ray_version']}'", "torch": f"torch=={_torch()}"}
    return SETUP.format(environment=ENVIRONMENT, python=here["python_version"], packages=" ".join(packages.values()))


def _torch() -> str:
    """Give torch's version here, without what names its build: a machine with GPUs wants another one."""
    from importlib.metadata import version

    return version("torch").partition("+")[0]
