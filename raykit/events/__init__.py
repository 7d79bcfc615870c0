"""What happened, in past tense: the only words in which a run speaks.

A host emits events, the log numbers them, and :func:`raykit.views.fold` makes views of them. Times are Unix seconds of
the head's clock and stand in the :class:`Record`; durations are measured where the thing happened. ``run``, ``pipeline``,
``training`` and ``use`` have the words of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raykit.codec import SCHEMA_VERSION, decode, encode
from raykit.events.pipeline import (
    AdviceApplied,
    AdviceMeasured,
    AdviceWithdrawn,
    Advised,
    BatchHalved,
    CpusShared,
    ReplicaEnded,
    ReplicaLost,
    ReplicaSampled,
    ReplicaStarted,
    RowsQuarantined,
    SourceCounted,
    SourceRestarted,
    SpanRestarted,
    StageSampled,
    StageWord,
)
from raykit.events.run import (
    Decided,
    DrillEnded,
    DrillStarted,
    EndState,
    HostStarted,
    LinesPrinted,
    OutputReady,
    RunAccepted,
    RunEnded,
    RunKind,
    RunStarted,
    RunWaited,
    SlotsHeld,
    SlotsReleased,
    StopAsked,
    UserFailed,
)
from raykit.events.service import (
    ReplicasWanted,
    RequestsSampled,
    ServiceOpened,
    ServiceUpdated,
    UpdateAsked,
    UpdateRefused,
)
from raykit.events.training import (
    CheckpointFailed,
    CheckpointSaved,
    Recovered,
    Resized,
    SlotsLent,
    StepCommitted,
    StepMeasured,
    WorkerAside,
    WorkerBusy,
    WorkerEnded,
    WorkerLost,
    WorkerReady,
    WorkerStarted,
    WorldBroken,
    WorldFormed,
)
from raykit.events.use import CostCounted, GpuUse, NodeSampled, ProcessUse, UseSampled

__all__ = [
    "CLUSTER",
    "SAMPLES",
    "AdviceApplied",
    "AdviceMeasured",
    "AdviceWithdrawn",
    "Advised",
    "BatchHalved",
    "CheckpointFailed",
    "CheckpointSaved",
    "CostCounted",
    "CpusShared",
    "Decided",
    "DrillEnded",
    "DrillStarted",
    "EndState",
    "Event",
    "GpuUse",
    "HostStarted",
    "LinesPrinted",
    "NodeSampled",
    "OutputReady",
    "ProcessUse",
    "Record",
    "Recovered",
    "ReplicaEnded",
    "ReplicaLost",
    "ReplicaSampled",
    "ReplicaStarted",
    "ReplicasWanted",
    "RequestsSampled",
    "Resized",
    "RowsQuarantined",
    "RunAccepted",
    "RunEnded",
    "RunKind",
    "RunStarted",
    "RunWaited",
    "ServiceOpened",
    "ServiceUpdated",
    "SlotsHeld",
    "SlotsLent",
    "SlotsReleased",
    "SourceCounted",
    "SourceRestarted",
    "SpanRestarted",
    "StageSampled",
    "StageWord",
    "StepCommitted",
    "StepMeasured",
    "StopAsked",
    "UpdateAsked",
    "UpdateRefused",
    "UseSampled",
    "UserFailed",
    "WorkerAside",
    "WorkerBusy",
    "WorkerEnded",
    "WorkerLost",
    "WorkerReady",
    "WorkerStarted",
    "WorldBroken",
    "WorldFormed",
    "record_from_json",
    "record_to_json",
]

Event = (
    RunAccepted
    | HostStarted
    | RunStarted
    | RunWaited
    | RunEnded
    | OutputReady
    | UserFailed
    | LinesPrinted
    | SlotsHeld
    | SlotsReleased
    | ReplicaStarted
    | ReplicaSampled
    | ReplicaEnded
    | ReplicaLost
    | CpusShared
    | SpanRestarted
    | SourceRestarted
    | BatchHalved
    | RowsQuarantined
    | StageSampled
    | Advised
    | AdviceWithdrawn
    | AdviceApplied
    | AdviceMeasured
    | SourceCounted
    | ServiceOpened
    | ReplicasWanted
    | RequestsSampled
    | UpdateAsked
    | ServiceUpdated
    | UpdateRefused
    | WorkerStarted
    | WorkerReady
    | WorldFormed
    | WorldBroken
    | WorkerAside
    | StepCommitted
    | StepMeasured
    | WorkerBusy
    | WorkerLost
    | WorkerEnded
    | NodeSampled
    | CostCounted
    | UseSampled
    | Resized
    | SlotsLent
    | Decided
    | Recovered
    | CheckpointSaved
    | CheckpointFailed
    | StopAsked
    | DrillStarted
    | DrillEnded
)

SAMPLES = (ReplicaSampled, StageSampled, RequestsSampled, StepCommitted, StepMeasured, NodeSampled, UseSampled)
"""Events of which a reader may miss some: a later one says more. All others are written through."""


CLUSTER = ""
"""The ``run`` of what is told of the cluster itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """An event with its place in the log: ``number`` grows over all runs of the cluster. Samples that later ones replaced
    leave gaps."""

    number: int
    at_unix_s: float
    run: str
    event: Event


def record_to_json(record: Record) -> dict[str, Any]:
    """Give a record as JSON values."""
    return {"v": SCHEMA_VERSION, "number": record.number, "at_unix_s": record.at_unix_s, "run": record.run} | {
        "event": encode(record.event)
    }


def record_from_json(data: dict[str, Any]) -> Record:
    """Rebuild the record that :func:`record_to_json` described."""
    return Record(number=data["number"], at_unix_s=data["at_unix_s"], run=data["run"], event=decode(Event, data["event"]))
