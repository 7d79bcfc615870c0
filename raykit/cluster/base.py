"""What a place of clusters can do, and what it says: the contract of every provider."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from typing import Any, Literal, Protocol

from raykit.cluster.record import ClusterRecord
from raykit.errors import ClusterDiffersError, ClusterError
from raykit.spec import ClusterSpec
from raykit.spec.cluster import shown

UP_TIMEOUT_S = 120.0
GUARDS = ("idle_s", "idle_gpu_utilization", "price_per_node_h", "max_cost_per_h", "budget", "delete_after_s")
"""The options that guard a cluster, and say nothing of what it is."""

State = Literal["starting", "up", "suspended", "gone", "unknown"]
Told = Callable[[str], None]
Started = tuple[ClusterRecord, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How a cluster is, as its place knows it. ``why`` says what it, or some node of it, waits for, or how it ended.

    ``since_unix_s`` is the moment since which it is suspended, where that is known.
    """

    state: State
    why: str = ""
    since_unix_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What would be made, thing by thing. Nothing of it is there yet, and no price is named that is not known."""

    name: str
    things: tuple[tuple[str, str], ...]
    price: str = "Its price is not known here."

    def __repr__(self) -> str:
        width = max((len(what) for what, _ in self.things), default=0)
        made = "\n".join(f"  {what:<{width}}  {how}" for what, how in self.things)
        return f"{self.name} would be made of:\n{made}\n{self.price} Nothing was made."


class Way(Protocol):
    """A way to a cluster's door, open until it is closed."""

    @property
    def url(self) -> str:
        """Where the door answers, on this machine."""

    def close(self) -> None:
        """Open no further connections."""


class Provider(ABC):
    """A place where clusters are made, found, changed and ended.

    All verbs block, and are idempotent: one that was interrupted, or whose process was killed in the middle, is done
    by being asked again. An interrupt or an error of ``up`` leaves nothing behind that this call has made.

    Raises, any of the verbs:
        ClusterError: the place cannot be asked, or refuses; the sentence says what was asked and what it answered.
        MissingPackageError: a package that reaches the place is not installed.
    """

    look_s: float = 0.05
    """How often the place may be asked how a cluster is, by who waits for it."""

    @abstractmethod
    def plan(self, spec: ClusterSpec) -> Plan:
        """Say what ``up`` would make; nothing is made."""

    @abstractmethod
    def up(self, spec: ClusterSpec, *, told: Told, timeout_s: float = UP_TIMEOUT_S) -> Started:
        """Give the cluster of that name, made or taken up again if need be, and a word on what was found.

        On return its door answers. Two that ask at once get one cluster.

        Args:
            spec: what is wanted.
            told: is given sentences on what is waited for, each once.
            timeout_s: after so long it is given up.

        Raises:
            ClusterDiffersError: it is there with other options; the difference is named.
        """

    @abstractmethod
    def status(self, record: ClusterRecord) -> Status:
        """Say how a cluster is."""

    @abstractmethod
    def scale(self, record: ClusterRecord, num_nodes: int | tuple[int, int]) -> ClusterRecord:
        """Let a cluster have so many nodes, or as many as runs need within a range, and give its new record.

        Raises:
            OptionError: the place has no such number or range.
        """

    @abstractmethod
    def suspend(self, record: ClusterRecord) -> None:
        """Give back all machines and keep what ``up`` needs to bring the cluster back; its runs are lost.

        Raises:
            ClusterError: nothing can be suspended here.
        """

    @abstractmethod
    def down(self, name: str) -> bool:
        """End a cluster and say whether there was one. Nothing of it is left but its log and its runs here."""

    @abstractmethod
    def logs(self, record: ClusterRecord, *, tail: int = 200) -> str:
        """Give the last lines that the parts of the cluster itself wrote, each under its name."""

    @abstractmethod
    def connect(self, record: ClusterRecord) -> Way:
        """Open a way to the cluster's door; one that drops is mended by itself."""


def price_words(spec: ClusterSpec) -> str:
    """Say what an hour costs, where the person has told what a node does."""
    if spec.price_per_node_h is None:
        return "Its price is not known here."
    least, most = spec.min_nodes * spec.price_per_node_h, spec.max_nodes * spec.price_per_node_h
    hourly = f"{most:.2f}" if least == most else f"{least:.2f} to {most:.2f}"
    return f"By --price its workers cost {hourly} an hour; the head is not counted."


def versions_here() -> dict[str, Any]:
    """The fields of a record that say by what it was made, and when."""
    return {
        "created_unix_s": time.time(),
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
        "ray_version": version("ray"),
        "raykit_version": version("raykit"),
    }


def difference(found: ClusterSpec, wanted: ClusterSpec, *, but: Sequence[str] = ()) -> str:
    """Say in which options two specs differ: ``--cpus is 4, asked 8``; empty when they agree."""
    parts = []
    for each in fields(ClusterSpec):
        if each.name in but:
            continue
        has, asked = found.chosen(each.name), getattr(wanted, each.name)
        if asked not in (has, each.default) or (each.name == "place" and asked != has):
            parts.append(f"{each.metadata['option'][0][0]} is {shown(has)}, asked {shown(asked)}")
    return "; ".join(parts)


def refuse_difference(found: ClusterRecord, wanted: ClusterSpec, *, is_up: bool = True) -> None:
    """Let nobody take a cluster for another one. What guards it may be another thing each time that it comes up.

    Raises:
        ClusterError: it runs another Python.
        ClusterDiffersError: it has other options.
    """
    this_python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if found.python_version != this_python:
        raise ClusterError(
            f"The cluster {found.name} runs Python {found.python_version}; this kernel is Python {this_python}, "
            "whose pickled code it cannot read.",
            f"Use a kernel of Python {found.python_version}, or: %ray down {found.name}, then %ray up {found.name}",
        )
    if said := difference(found.spec, wanted, but=() if is_up else GUARDS):
        scale = f"change it (%ray scale {found.name} {shown(wanted.nodes)}), " if "--nodes" in said and ";" not in said else ""
        raise ClusterDiffersError(
            f"The cluster {found.name} is {'up' if is_up else 'known'} with other options: {said}.",
            f"Use it as it is (%ray use {found.name}), {scale}give the new one another name, or end it first: %ray down {found.name}",
        )
