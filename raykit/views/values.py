"""The values of a view: a run, its stages and replicas, its ranks, its cards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from raykit import events as ev
from raykit.decisions import StageChange
from raykit.spec.priority import Priority

RunState = Literal["waiting", "starting", "running", "recovering", "resizing", "stopping", "done", "failed", "stopped", "lost"]
ENDED: tuple[RunState, ...] = ("done", "failed", "stopped", "lost")

RATE_WINDOW_S = 1.0
MAX_POINTS = 240
MAX_MARKS = 200  # the newest; all are in the log

Amount = TypeVar("Amount", int, float)
Value = TypeVar("Value")


def changed(value: Value, **fields: Any) -> Value:
    """Give a copy of a dataclass without slots with other values in some of its fields.

    It is ``dataclasses.replace`` without a call of the constructor: a fold changes few of many fields, and a reader who
    comes late folds thousands of events at once.
    """
    merged = value.__dict__ | fields
    assert len(merged) == len(value.__dict__), f"{type(value).__name__} has not all of {', '.join(fields)}"
    copy = object.__new__(type(value))
    object.__setattr__(copy, "__dict__", merged)  # in one piece, which is twice as fast as an update
    return copy


def total(amounts: Iterable[Amount | None]) -> Amount | None:
    """Add amounts up; None where one of them is unknown, or there is none."""
    known = list(amounts)
    return None if None in known or not known else sum(amount for amount in known if amount is not None)


def together(worker: str, uses: Sequence[ev.ProcessUse]) -> ev.ProcessUse:
    """Give what several use, under one name."""
    return ev.ProcessUse(
        worker=worker,
        num_cpus=total(use.num_cpus for use in uses),
        memory_bytes=total(use.memory_bytes for use in uses),
        num_gpus=total(use.num_gpus for use in uses),
        gpu_memory_bytes=total(use.gpu_memory_bytes for use in uses),
        gpu_fault=next((use.gpu_fault for use in uses if use.gpu_fault), ""),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesView:
    """A figure over time, as (Unix seconds, value), in at most ``MAX_POINTS`` points however long the run.

    When there are more, every second one is left out, and later ones are taken as far apart as those that stay.
    """

    points: tuple[tuple[float, float], ...] = ()
    stride_s: float = 0.0

    def at(self, at_unix_s: float, value: float) -> SeriesView:
        """Take the value at a time into account."""
        if self.points and at_unix_s - self.points[-1][0] < self.stride_s:
            return self
        points = (*self.points, (at_unix_s, value))
        if len(points) <= MAX_POINTS:
            return SeriesView(points=points, stride_s=self.stride_s)
        thinned = points[::2]
        return SeriesView(points=thinned, stride_s=(thinned[-1][0] - thinned[0][0]) / len(thinned))

    def pace(self, at_unix_s: float) -> float | None:
        """Growth a second over the newer half of the time until now; None while it does not grow."""
        if not self.points:
            return None
        middle = (self.points[0][0] + at_unix_s) / 2
        begun = next((point for point in self.points if point[0] >= middle), self.points[-1])
        passed_s, grown = self.points[-1][0] - begun[0], self.points[-1][1] - begun[1]
        return grown / passed_s if passed_s > 0 and grown > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RateView:
    """Rows a second, measured over a window of at least ``RATE_WINDOW_S``; None until one has passed. ``past`` has all windows."""

    per_s: float | None = None
    since_unix_s: float | None = None
    since_rows: int = 0
    past: SeriesView = SeriesView()

    def at(self, at_unix_s: float, rows: int) -> RateView:
        """Take the total ``rows`` at a time into account."""
        if self.since_unix_s is None:
            return RateView(since_unix_s=at_unix_s, since_rows=rows)
        passed_s = at_unix_s - self.since_unix_s
        if passed_s < RATE_WINDOW_S:
            return self
        per_s = (rows - self.since_rows) / passed_s
        return RateView(per_s=per_s, since_unix_s=at_unix_s, since_rows=rows, past=self.past.at(at_unix_s, per_s))


@dataclass(frozen=True, kw_only=True)
class ReplicaView:
    """One replica of a stage: its process and its own counts."""

    replica: str
    pid: int
    node: str
    start_s: float
    rows_in: int = 0
    rows_out: int = 0
    busy_s: float = 0.0
    starved_s: float = 0.0
    blocked_s: float = 0.0
    gone: bool = False
    use: ev.ProcessUse | None = None


@dataclass(frozen=True, kw_only=True)
class StageView:
    """A stage: its totals, what waits before it, and the time of its replicas. ``word`` says how it fares among the others."""

    name: str
    replicas: tuple[ReplicaView, ...] = ()
    num_replicas: int | None = 0
    rows_waiting: int | None = None
    rows_in: int | None = 0
    rows_out: int = 0
    num_bad: int = 0
    word: ev.StageWord | Literal[""] = ""
    rate: RateView = RateView()
    num_failed_tasks: int | None = None
    num_cpus: float | None = None
    num_gpus: float | None = None
    held_by: str | None = None
    earlier_s: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Busy, starved and blocked time of replicas that are gone for so long that they are not among ``replicas``."""

    @property
    def busy_s(self) -> float:
        return self.earlier_s[0] + sum(replica.busy_s for replica in self.replicas)

    @property
    def starved_s(self) -> float:
        return self.earlier_s[1] + sum(replica.starved_s for replica in self.replicas)

    @property
    def blocked_s(self) -> float:
        return self.earlier_s[2] + sum(replica.blocked_s for replica in self.replicas)

    @property
    def shares(self) -> tuple[float, float, float] | None:
        """Shares of the replicas' counted time: busy in user code, starved, blocked; None before any was counted."""
        counted_s = self.busy_s + self.starved_s + self.blocked_s
        return (self.busy_s / counted_s, self.starved_s / counted_s, self.blocked_s / counted_s) if counted_s else None

    @property
    def busy_share(self) -> float | None:
        return self.shares[0] if self.shares else None

    @property
    def use(self) -> ev.ProcessUse | None:
        """What the replicas that are there use together, unknown where it is of one of them; None while there are none."""
        uses = [replica.use or ev.ProcessUse(worker=replica.replica) for replica in self.replicas if not replica.gone]
        return together(self.name, uses) if uses else None


@dataclass(frozen=True, kw_only=True)
class RankView:
    """A training worker: a rank of the world, or a spare (``rank`` None) that waits beside it.

    ``num_cpus`` and ``num_gpus`` are the slots that a rank holds; a spare holds none.
    """

    worker: str
    pid: int
    node: str
    device: str
    rank: int | None = None
    ready: bool = False
    lost: bool = False
    busy_with: str = ""
    num_cpus: float | None = None
    num_gpus: float | None = None
    use: ev.ProcessUse | None = None


@dataclass(frozen=True, kw_only=True)
class AdviceView:
    """What would make a pipeline faster, and what came of it: rates in source rows a second."""

    changes: tuple[StageChange, ...]
    rows_s: float
    expected_rows_s: float
    reason: str
    applied: bool = False
    measured_rows_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CardView:
    """A failure and how it was mended, or a drill's verdict."""

    at_unix_s: float
    title: str
    good: bool
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkView:
    """Something that a person asked for, where the timeline shows it."""

    at_unix_s: float
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanView:
    """A state that the run was in from a time on, until the next span's."""

    state: RunState
    from_unix_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputView:
    """A name that came back."""

    name: str
    file: str
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class SlotView:
    """What a holder holds, or held: logical slots, not use."""

    holder: str
    num_cpus: float
    num_gpus: float
    held_at_unix_s: float
    released_at_unix_s: float | None = None

    def held_s(self, now_unix_s: float) -> float:
        """Seconds held until now, or until the release."""
        return max(0.0, (self.released_at_unix_s or now_unix_s) - self.held_at_unix_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoanView:
    """For whose sake a training has fewer ranks than it asks for, and how many it may have."""

    borrower: str
    max_workers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedView:
    """A version of a service that could not be built, where and why."""

    version: int
    where: str
    error: str
    traceback_text: str


@dataclass(frozen=True, kw_only=True)
class ServiceView:
    """A service's address and its requests: how many come, how long the newest were answered in (None: there were none).

    ``version`` is the one that answers, ``asked`` the one that was asked for last, and ``refused`` the last that could not be
    built, with where and why.
    """

    url: str = ""
    slo_s: float = 1.0
    wanted: int = 0
    rate_s: float = 0.0
    p50_s: float | None = None
    p95_s: float | None = None
    p99_s: float | None = None
    num_open: int = 0
    num_failed: int = 0
    version: int = 1
    asked: int = 1
    refused: RefusedView | None = None

    def has_answered(self, version: int) -> bool:
        """Say whether a version that was asked for, or a later one, is there or was refused."""
        return max(self.version, self.refused.version if self.refused else 0) >= version


@dataclass(frozen=True, slots=True, kw_only=True)
class LineView:
    """A printed line and the stage or rank that it came from."""

    source: str
    text: str


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A run as it stands after the event ``number``."""

    name: str
    number: int = 0
    run_kind: ev.RunKind = "task"
    state: RunState = "waiting"
    reason: str = ""
    folder: str = ""
    simulated_gpus: bool = False
    resumed: bool = False
    priority: Priority = "normal"
    accepted_at_unix_s: float | None = None
    started_at_unix_s: float | None = None
    updated_at_unix_s: float | None = None
    ended_at_unix_s: float | None = None
    host_attempts: int = 0
    stages: tuple[StageView, ...] = ()
    source_rows: int | None = None
    advice: AdviceView | None = None
    changes: tuple[StageChange, ...] = ()
    ranks: tuple[RankView, ...] = ()
    world_size: int = 0
    resized_to: tuple[int, int] | None = None
    loan: LoanView | None = None
    service: ServiceView | None = None
    generation: int = 0
    step: int = 0
    total_steps: int | None = None
    epoch: int | None = 0
    rows: int = 0
    rate: RateView = RateView()
    metrics: tuple[tuple[str, float], ...] = ()
    work: SeriesView = SeriesView()
    curves: tuple[tuple[str, SeriesView], ...] = ()
    spans: tuple[SpanView, ...] = ()
    marks: tuple[MarkView, ...] = ()
    checkpoint_step: int | None = None
    checkpoint_path: str = ""
    cards: tuple[CardView, ...] = ()
    slots: tuple[SlotView, ...] = ()
    earlier_slot_s: tuple[float, float] = (0.0, 0.0)
    """CPU and GPU slot seconds of what was released so long ago that it is not among ``slots``, or before a resume."""
    outputs: tuple[OutputView, ...] = ()
    lines: tuple[LineView, ...] = ()
    num_lines: int = 0
    num_lines_dropped: int = 0
    """How many of ``num_lines`` were never among ``lines``, since too many came at once."""
    open_lines: tuple[LineView, ...] = ()
    """What is still being written, such as bars."""
    error: str = ""
    error_where: str = ""
    traceback_text: str = ""

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def held(self) -> tuple[SlotView, ...]:
        """The slots that it holds."""
        return tuple(slot for slot in self.slots if slot.released_at_unix_s is None)

    def slot_s(self, now_unix_s: float) -> tuple[float, float]:
        """Give the CPU and GPU slot seconds that were held until now."""
        cpu_s, gpu_s = self.earlier_slot_s
        cpu_s += sum(slot.num_cpus * slot.held_s(now_unix_s) for slot in self.slots)
        return cpu_s, gpu_s + sum(slot.num_gpus * slot.held_s(now_unix_s) for slot in self.slots)

    def marked(self, at_unix_s: float, words: str) -> RunView:
        """Give the view with something that was asked of the run."""
        return changed(self, marks=(*self.marks, MarkView(at_unix_s=at_unix_s, words=words))[-MAX_MARKS:])

    @property
    def elapsed_s(self) -> float | None:
        """From acceptance to the last event."""
        if self.accepted_at_unix_s is None or self.updated_at_unix_s is None:
            return None
        return self.updated_at_unix_s - self.accepted_at_unix_s

    @property
    def progress(self) -> float | None:
        """Share of the work that is done, None where the whole is not known."""
        if self.state == "done":
            return 1.0
        return min(1.0, self.work_done / self.work_whole) if self.work_whole else None

    @property
    def work_whole(self) -> int | None:
        """Steps of a training, source rows of a pipeline; None where that is not known."""
        return self.total_steps if self.run_kind == "training" else self.source_rows

    @property
    def work_done(self) -> int:
        """How many of :attr:`work_whole` are committed or taken."""
        if self.run_kind == "training":
            return self.step
        return (self.stages[0].rows_in or 0) if self.stages else 0

    @property
    def left_s(self) -> float | None:
        """Seconds until the work is done at its newest pace; None where the whole or the pace is not known."""
        if self.ended or not self.work_whole or self.updated_at_unix_s is None:
            return None
        pace = self.work.pace(self.updated_at_unix_s)
        return None if pace is None else max(0, self.work_whole - self.work_done) / pace


Step = Callable[[RunView, Any, float], RunView]
"""Gives the view after an event that happened at a time."""

Samples = Callable[[RunView, Sequence[tuple[float, Any]]], RunView]
"""Gives the view after samples in their order, as (Unix seconds, event): each replaces the one before, series see them all."""
