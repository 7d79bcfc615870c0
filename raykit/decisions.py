"""What to do next, as a policy says it. The host carries it out.

A replica is the unit of membership in training: one rank, or a group of ranks that hold one model together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LossAnswer = Literal["shrink", "wait", "stop"]
"""What a run does when it loses a replica: go on smaller, wait until it is whole again, or save and end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Start this many replicas: ranks in slots that are held, spares beside them."""

    num_ranks: int = 0
    num_spares: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """Form a world of these replicas, in the order of their ranks."""

    replicas: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conclude:
    """Let these replicas meet once more, save the furthest state among them, and end the run."""

    replicas: tuple[str, ...]
    reason: str
    failed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """End these replicas: they are in no world, and hold what the run shall not use any more."""

    replicas: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StandBy:
    """Give the slots of these replicas back: they are in no world, and wait with all they have loaded for others."""

    replicas: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp:
    """End the run: it cannot go on, and nobody is left who could save its state."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Run a stage of a pipeline on this many replicas."""

    stage: str
    num_replicas: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StageChange:
    """What to do otherwise with a stage of a pipeline; None leaves it as it is. See ``StageSpec`` for each."""

    stage: str
    min_replicas: int | None = None
    max_replicas: int | None = None
    batch_size: int | None = None
    concurrency: int | None = None
    num_threads: int | None = None
    num_cpus: float | None = None
    num_gpus: float | None = None
    memory_bytes: int | None = None

    @property
    def fields(self) -> dict[str, float]:
        """What is changed, by the names of ``StageSpec``."""
        return {name: value for name in self.__slots__ if name != "stage" and (value := getattr(self, name)) is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """Make some calls of a stage so, to see what it costs then."""

    change: StageChange


@dataclass(frozen=True, slots=True, kw_only=True)
class Advise:
    """Tell a person what would make a pipeline faster: changes, or, without any, what only a person can do."""

    changes: tuple[StageChange, ...]
    rows_s: float
    expected_rows_s: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WarnSuspend:
    """Tell that the cluster will be suspended in so long, for a reason that may go away until then."""

    left_s: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SuspendCluster:
    """Give the cluster's machines back."""

    reason: str


Decision = Start | Form | Conclude | End | StandBy | GiveUp | Scale | Try | Advise | WarnSuspend | SuspendCluster
