"""The machines of one cluster in Amazon's cloud, through Ray's launcher in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from raykit.cluster.exchange import exchange
from raykit.errors import ClusterError, require
from raykit.spec import ClusterSpec

ASK_S = 180.0
PROGRAM = [sys.executable, "-m", "raykit.engine.launcher"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rented:
    """A machine that is rented, or stopped and kept; ``key`` is the file by which ssh reaches it."""

    id: str
    number: int
    state: str
    address: str
    key: str

    @property
    def runs(self) -> bool:
        return self.state in ("pending", "running")


class Cloud:
    """What is asked of it blocks, and is done by being asked again.

    Raises, any of the verbs:
        ClusterError: AWS refuses, or does not answer.
        MissingPackageError: boto3 is not installed.
    """

    def __init__(self, spec: ClusterSpec) -> None:
        self._cloud = {
            "name": spec.name,
            "region": spec.region,
            "instance": spec.machine,
            "image": spec.image,
            "user": spec.user,
            "spot": spec.spot,
        }

    def plan(self) -> dict[str, float]:
        """Give the resources of a machine of the type, as Ray counts them."""
        resources: dict[str, float] = self._ask("plan")["resources"]
        return resources

    def look(self) -> list[Rented]:
        """Give the machines, by their numbers; the first one has the head."""
        return self._machines("look")

    def rent(self, numbers: list[int]) -> list[Rented]:
        return self._machines("rent", numbers=numbers)

    def start(self, ids: list[str]) -> list[Rented]:
        """Start machines that are stopped."""
        return self._machines("start", ids=ids)

    def stop(self, ids: list[str]) -> list[Rented]:
        """Stop machines; their disks are kept, and cost."""
        return self._machines("stop", ids=ids)

    def end(self, ids: list[str]) -> list[Rented]:
        """Give machines back, with their disks."""
        return self._machines("end", ids=ids)

    def _machines(self, verb: str, **facts: Any) -> list[Rented]:
        return [Rented(**each) for each in self._ask(verb, **facts)["machines"]]

    def _ask(self, verb: str, **facts: Any) -> dict[str, Any]:
        require("boto3", extra="aws", why="to reach Amazon's cloud")
        asked = json.dumps({"verb": verb, "cloud": self._cloud, **facts})
        try:
            status, said, complaints = exchange(PROGRAM, asked, ASK_S)
        except subprocess.TimeoutExpired as exc:
            raise ClusterError(f"AWS did not {verb} within {ASK_S:.0f} s.", "Is this machine on the internet?") from exc
        if status:
            raise ClusterError(f"Ray's launcher failed: {complaints.strip()[-500:]}")
        answer: dict[str, Any] = json.loads(said)
        if "refused" in answer:
            raise ClusterError(*answer["refused"])
        return answer
