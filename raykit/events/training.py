"""What happens in a training: to its workers, its world, its steps and checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field

from raykit.spec.training import LossCause


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
class WorkerAside:
    """A worker has left its world at a commit for one without it: its slot is another's to use."""

    worker: str
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldBroken:
    """A rank could not reach its peers and left the world; it waits for the next one."""

    worker: str
    generation: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCommitted:
    """A step is in the model. ``metrics`` are what is known of it at once; see also :class:`StepMeasured`.

    ``epoch`` and ``num_rows`` are None where the loop is Ray Train's: it does not say them.
    """

    step: int
    epoch: int | None
    num_rows: int | None
    total_steps: int | None
    metrics: dict[str, float] = field(default_factory=dict)
    step_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMeasured:
    """The metrics of a committed step: means over its global batch, which ranks sum with their next step."""

    step: int
    epoch: int
    num_rows: int
    metrics: dict[str, float]


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
class SlotsLent:
    """The run may have ``max_workers`` ranks for now, for the sake of a run of a higher priority; None ends that."""

    borrower: str
    max_workers: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resized:
    """A person asked for another number of ranks."""

    min_workers: int
    max_workers: int


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
