"""What happened, in past tense: the only words in which a run speaks.

A host emits events, the log numbers them, and :func:`raykit.views.fold` makes views of them. Times are Unix seconds of
the head's clock and stand in the :class:`Record`; durations are measured where the thing happened.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from raykit.codec import SCHEMA_VERSION, decode, encode
from raykit.decisions import StageChange
from raykit.spec.training import LossCause

RunKind = Literal["task", "pipeline", "training", "observed"]
EndState = Literal["done", "failed", "stopped", "lost"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAccepted:
    """The door took the run; its folder exists."""

    run_kind: RunKind
    folder: str
    stages: tuple[str, ...] = ()
    resumed: bool = False
    simulated_gpus: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HostStarted:
    """The run's host is there; a number above one says that it came back."""

    pid: int
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """The user's code began to run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunWaited:
    """The run cannot start yet, and why."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded:
    """The run is over. ``error`` is the sentence for the card when it did not end well."""

    state: EndState
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputReady:
    """A name that came back, as a file in the run's folder."""

    name: str
    file: str
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UserFailed:
    """The user's code raised; the traceback holds the user's frames only."""

    where: str
    error: str
    traceback_text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LinesPrinted:
    """What a worker printed, and how many lines were left out of the view (the file has them)."""

    source: str
    lines: tuple[str, ...]
    num_dropped: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotsHeld:
    """Slots went to ``holder``. They are logical: held, not used."""

    holder: str
    num_cpus: float
    num_gpus: float
    node: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotsReleased:
    """``holder`` gave back what it held."""

    holder: str


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


StageWord = Literal["starved", "bottleneck", "buffered", "balanced"]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStarted:
    """A training worker is there: it runs the user's code up to the first step. ``num_cpus`` and ``num_gpus`` are a rank's."""

    worker: str
    pid: int
    node: str
    device: str
    num_cpus: float | None = None
    num_gpus: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReady:
    """A worker has run the user's code up to its first step: it can join a world at once."""

    worker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldFormed:
    """The ranks, in their order, agreed on the step from which they go on."""

    generation: int
    workers: tuple[str, ...]
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldBroken:
    """A rank could not reach its peers and left the world; it waits for the next one."""

    worker: str
    generation: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCommitted:
    """A step is in the model. ``metrics`` are means over the global batch, or what rank 0 reported to Ray Train.

    ``epoch`` and ``num_rows`` are None where the loop is Ray Train's: it does not say them.
    """

    step: int
    epoch: int | None
    num_rows: int | None
    total_steps: int | None
    metrics: dict[str, float] = field(default_factory=dict)
    step_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerBusy:
    """A rank does something outside the step while the others wait, or is back (an empty ``what``)."""

    worker: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLost:
    """A worker is gone: a rank, or a spare (rank None)."""

    worker: str
    rank: int | None
    cause: str
    category: LossCause = "died"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerEnded:
    """A worker was let go, because the run was made smaller."""

    worker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuUse:
    """What the driver tells of a GPU, or of an instance that MIG cut from one (``gpu`` is then ``0:1``). None is unknown.

    ``utilization`` is a share of time, ``users`` the processes that hold memory of it, by run and worker. ``fault`` says
    in the driver's words that it cannot be read, such as a GPU that is lost.
    """

    gpu: str
    name: str | None = None
    utilization: float | None = None
    memory_used_bytes: int | None = None
    memory_bytes: int | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    throttled_by: tuple[str, ...] | None = None
    users: tuple[str, ...] | None = None
    fault: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSampled:
    """What the machine of a node uses, whoever uses it; ``num_cpus`` are cores at work.

    ``gpus`` is None where no driver tells of them, ``fault`` then says why.
    """

    node: str
    num_cpus: float
    memory_used_bytes: int
    memory_bytes: int
    gpus: tuple[GpuUse, ...] | None
    fault: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessUse:
    """What the process of a replica or a training worker uses, with those that it started. None is unknown.

    ``num_cpus`` and ``num_gpus`` are cores and GPUs kept at work (two at half are one), ``memory_bytes`` is resident, pages
    that its processes share counted in each. ``gpu_fault`` says that a GPU under it cannot be read.
    """

    worker: str
    num_cpus: float | None = None
    memory_bytes: int | None = None
    num_gpus: float | None = None
    gpu_memory_bytes: int | None = None
    gpu_fault: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UseSampled:
    """What the processes of a run use on one node, seen from outside by the node's sampler."""

    node: str
    uses: tuple[ProcessUse, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resized:
    """A person asked for another number of ranks."""

    min_workers: int
    max_workers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """A policy decided something: the decision's name, and what it is about."""

    decision: str
    about: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """The first step after a loss is committed: the recovery card.

    ``detected_after_s`` is None where the moment of death is not known, ``recovered_after_s`` where the run ended with the
    loss, ``steps_redone`` where it is not known what was in flight; ``stack`` is where the code of one that hung stood.
    """

    what: str
    cause: str = ""
    stack: str = ""
    detected_after_s: float | None
    recovered_after_s: float | None
    world_before: int
    world_after: int
    step_before: int
    steps_lost: int
    steps_redone: int | None
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSaved:
    """The state up to ``step`` lies in ``path``. ``save_s`` is None where the user's own code wrote it."""

    step: int
    path: str
    save_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFailed:
    """The state up to ``step`` could not be written to ``path``; training goes on."""

    step: int
    path: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StopAsked:
    """A person asked the run to end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillStarted:
    """Something is about to be broken on purpose; ``target`` says what."""

    action: str
    target: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillEnded:
    """The verdict of a drill."""

    action: str
    passed: bool
    verdict: str


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
    | WorkerStarted
    | WorkerReady
    | WorldFormed
    | WorldBroken
    | StepCommitted
    | WorkerBusy
    | WorkerLost
    | WorkerEnded
    | NodeSampled
    | UseSampled
    | Resized
    | Decided
    | Recovered
    | CheckpointSaved
    | CheckpointFailed
    | StopAsked
    | DrillStarted
    | DrillEnded
)

SAMPLES = (ReplicaSampled, StageSampled, StepCommitted, NodeSampled, UseSampled)
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
