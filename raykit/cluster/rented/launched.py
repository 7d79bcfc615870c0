"""The machines of one cluster in Amazon's cloud, or Google's, through Ray's launcher in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from raykit.cluster import record as records
from raykit.cluster.code import python_path_here
from raykit.cluster.exchange import exchange
from raykit.cluster.home import private_folder
from raykit.cluster.rented.cloud import Cloud, Rented
from raykit.cluster.ssh.machine import Machine
from raykit.errors import ClusterError, require
from raykit.spec import ClusterSpec
from raykit.spec.cluster import PLACES

ASK_S = 180.0


class Launched(Cloud):
    """Machines carry the cluster's name and their number as tags, by which they are found."""

    unreached = "Does the subnet give public addresses, and is --user right for the image?"
    program: str
    package: str
    called: str
    made_once: str
    """What is made in the account where it is not there yet."""

    default_image = ""

    def __init__(self, spec: ClusterSpec) -> None:
        self._spec = spec
        machine, region = spec.chosen("machine"), spec.chosen("region")
        self.what = f"{machine} in {region}"
        self._cloud = {
            "name": spec.name,
            "region": region,
            "instance": machine,
            "image": spec.image or self.default_image,
            "user": spec.user,
            "spot": spec.spot,
        }

    def plan(self) -> tuple[list[tuple[str, str]], str]:
        spec, resources = self._spec, self._ask("plan")["resources"]
        holds = ", ".join(f"{number:g} {kind}" for kind, number in resources.items() if kind in ("CPU", "GPU"))
        each = f"{'spot ' if spec.spot else ''}{self.what}: {holds}"
        things = [(f"machine {number}", each) for number in range(1, spec.max_nodes + 1)]
        things.append(("in the account", f"{self.made_once}, where Ray's are not there yet"))
        if spec.price_per_node_h is None:
            return things, "Its price is not known here."
        return things, f"By --price it costs {spec.max_nodes * spec.price_per_node_h:.2f} an hour."

    def look(self) -> list[Rented]:
        return [Rented(**each) for each in self._ask("look")["machines"]]

    def rent(self, numbers: Sequence[int]) -> None:
        self._ask("rent", numbers=list(numbers))

    def start(self, rented: Sequence[Rented]) -> None:
        self._ask("start", ids=[each.id for each in rented])

    def stop(self, rented: Sequence[Rented]) -> None:
        self._ask("stop", ids=[each.id for each in rented])

    def end(self, rented: Sequence[Rented]) -> None:
        self._ask("end", ids=[each.id for each in rented])

    def reached(self, rented: Rented) -> Machine:
        """Its keys are new to everybody, and kept for this cluster alone."""
        spec = self._spec
        known_hosts = private_folder(records.cluster_folder(spec.name)) / "known_hosts"
        return Machine(
            host=f"{spec.user}@{rented.address}",
            python=spec.python or "python3",
            key=rented.key,
            config=spec.ssh_config,
            options=("StrictHostKeyChecking=accept-new", f"UserKnownHostsFile={known_hosts}"),
        )

    def _ask(self, verb: str, **facts: Any) -> dict[str, Any]:
        require(self.package, extra=self._spec.place, why=f"to reach {PLACES[self._spec.place]}")
        asked = json.dumps({"verb": verb, "cloud": self._cloud, **facts})
        try:
            program = [sys.executable, "-m", self.program]
            status, said, complaints = exchange(program, asked, ASK_S, settings={"PYTHONPATH": python_path_here()})
        except subprocess.TimeoutExpired as exc:
            raise ClusterError(f"{self.called} did not {verb} within {ASK_S:.0f} s.", "Is this machine on the internet?") from exc
        if status:
            raise ClusterError(f"Ray's launcher failed: {complaints.strip()[-500:]}")
        answer: dict[str, Any] = json.loads(said)
        if "refused" in answer:
            raise ClusterError(*answer["refused"])
        return answer


class Aws(Launched):
    """Amazon's EC2."""

    program, package, called = "raykit.engine.launchers.aws", "boto3", "AWS"
    made_once = "a key pair, and a security group that lets ssh in"


class Gcp(Launched):
    """Google's Compute Engine; its default network has rules that let ssh in."""

    program, package, called = "raykit.engine.launchers.gcp", "googleapiclient", "Google"
    made_once = "a key pair for ssh"
    default_image = "projects/deeplearning-platform-release/global/images/family/common-cpu"  # as in Ray's own examples
