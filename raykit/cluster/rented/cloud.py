"""What a cloud is asked for the machines of one cluster."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from raykit.cluster.ssh.machine import Machine
from raykit.spec import ClusterSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Rented:
    """A machine that is rented, or stopped and kept; ``number`` counts from 1, which has the head.

    ``address`` is what ssh calls it, and ``key`` the file by which it is reached, empty for ssh's own. ``since_unix_s`` is the
    moment of its last change of state, where the cloud tells it.
    """

    id: str
    number: int
    state: str
    address: str
    key: str = ""
    since_unix_s: float | None = None

    @property
    def runs(self) -> bool:
        return self.state in ("pending", "running")

    @property
    def stopped(self) -> bool:
        return self.state in ("stopping", "stopped")


class Cloud(ABC):
    """What is asked of it blocks, and is done by being asked again.

    Raises, any of the verbs:
        ClusterError: the cloud refuses, or does not answer.
        MissingPackageError: a package that reaches it is not installed.
    """

    what: str
    """What is rented, in a few words."""

    unreached: str
    """What to look at when machines do not answer."""

    @abstractmethod
    def __init__(self, spec: ClusterSpec) -> None: ...

    @abstractmethod
    def plan(self) -> tuple[list[tuple[str, str]], str]:
        """Give what would be rented, thing by thing, and what is known of its price."""

    @abstractmethod
    def look(self) -> list[Rented]:
        """Give the machines, by their numbers."""

    @abstractmethod
    def rent(self, numbers: Sequence[int]) -> None:
        """Rent machines that are not there yet."""

    @abstractmethod
    def start(self, rented: Sequence[Rented]) -> None:
        """Start machines that do not run."""

    @abstractmethod
    def stop(self, rented: Sequence[Rented]) -> None:
        """Stop machines; their disks are kept, and cost."""

    @abstractmethod
    def end(self, rented: Sequence[Rented]) -> None:
        """Give machines back, with their disks."""

    @abstractmethod
    def reached(self, rented: Rented) -> Machine:
        """Give a machine as ssh reaches it."""
