"""What happens in a pipeline: to its source, its stages and replicas, and to the advice that it is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raykit.decisions import StageChange

StageWord = Literal["starved", "bottleneck", "buffered", "balanced"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStarted:
    """A replica of a stage is built and takes rows. ``start_s`` is the time of the user's ``__init__``."""

    stage: str
    replica: str
    pid: int
    node: str
    start_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSampled:
    """Totals of one replica since its start: counted in its process.

    ``starved_s``: it had no rows to take. ``blocked_s``: there were rows, but nobody took what it would have made of them.
    """

    stage: str
    replica: str
    rows_in: int
    rows_out: int
    busy_s: float
    starved_s: float
    blocked_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaEnded:
    """A replica that the run does not need any more has gone."""

    stage: str
    replica: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaLost:
    """A replica died, or was ended because it did not answer; its rows are taken again."""

    stage: str
    replica: str
    cause: str
    num_rows_again: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanRestarted:
    """Blocks were lost with a node: what became of these source rows is made again from the source."""

    span: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CpusShared:
    """The cluster has fewer CPUs than a replica of each stage asks for: each holds ``share`` of what it asked for."""

    share: float
    num_stages: int
    num_cpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRestarted:
    """The process of the source's function was lost: it is begun again, and its first ``num_rows`` are left out."""

    num_rows: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchHalved:
    """A batch did not fit the GPU's memory; this replica takes ``num_rows`` at most from now on."""

    stage: str
    replica: str
    num_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsQuarantined:
    """Rows were put aside; ``error`` is that of the last one."""

    stage: str
    num_rows: int
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSampled:
    """What the host knows of a stage: its replicas alive, rows that wait before it, and totals. ``word`` is empty at first.

    Of plain Ray Data code also: its failed tasks, the slots held, and the backpressure that holds it. None is unknown.
    """

    stage: str
    num_replicas: int | None
    rows_waiting: int | None
    rows_in: int | None
    rows_out: int
    num_bad: int = 0
    word: StageWord | Literal[""] = ""
    num_failed_tasks: int | None = None
    num_cpus: float | None = None
    num_gpus: float | None = None
    held_by: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Advised:
    """What would make a pipeline faster, in source rows a second; without ``changes`` it is for a person to do."""

    changes: tuple[StageChange, ...]
    rows_s: float
    expected_rows_s: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AdviceWithdrawn:
    """What was advised last would help no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdviceApplied:
    """A person had the newest advice carried out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdviceMeasured:
    """What came of the advice that was carried out."""

    rows_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCounted:
    """How many rows the source has, where that is known."""

    num_rows: int
