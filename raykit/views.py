"""What is true now: values made of events by :func:`fold`, drawn alike by widget, page, text and tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from raykit import events as ev

RunState = Literal["waiting", "starting", "running", "recovering", "stopping", "done", "failed", "stopped", "lost"]
ENDED: tuple[RunState, ...] = ("done", "failed", "stopped", "lost")

MAX_LINES = 200
MAX_CURVE_POINTS = 400
RATE_WINDOW_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RateView:
    """Rows a second, measured over a window of at least ``RATE_WINDOW_S``; None until one has passed."""

    per_s: float | None = None
    since_unix_s: float | None = None
    since_rows: int = 0

    def at(self, at_unix_s: float, rows: int) -> RateView:
        """Take the total ``rows`` at a time into account."""
        if self.since_unix_s is None:
            return RateView(since_unix_s=at_unix_s, since_rows=rows)
        passed_s = at_unix_s - self.since_unix_s
        if passed_s < RATE_WINDOW_S:
            return self
        return RateView(per_s=(rows - self.since_rows) / passed_s, since_unix_s=at_unix_s, since_rows=rows)


@dataclass(frozen=True, slots=True, kw_only=True)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class StageView:
    """A stage: its totals, what waits before it, and the time of its replicas. ``word`` says how it fares among the others."""

    name: str
    replicas: tuple[ReplicaView, ...] = ()
    num_replicas: int = 0
    rows_waiting: int | None = None
    rows_in: int = 0
    rows_out: int = 0
    num_bad: int = 0
    word: ev.StageWord | Literal[""] = ""
    rate: RateView = RateView()

    @property
    def busy_s(self) -> float:
        return sum(replica.busy_s for replica in self.replicas)

    @property
    def starved_s(self) -> float:
        return sum(replica.starved_s for replica in self.replicas)

    @property
    def blocked_s(self) -> float:
        return sum(replica.blocked_s for replica in self.replicas)

    @property
    def shares(self) -> tuple[float, float, float] | None:
        """Shares of the replicas' counted time: busy in user code, starved, blocked; None before any was counted."""
        counted_s = self.busy_s + self.starved_s + self.blocked_s
        return (self.busy_s / counted_s, self.starved_s / counted_s, self.blocked_s / counted_s) if counted_s else None

    @property
    def busy_share(self) -> float | None:
        return self.shares[0] if self.shares else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankView:
    """A training worker: a rank of the world, or a spare (``rank`` None) that waits beside it."""

    worker: str
    pid: int
    node: str
    device: str
    rank: int | None = None
    ready: bool = False
    lost: bool = False
    busy_with: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CardView:
    """A failure and how it was mended, or a drill's verdict."""

    at_unix_s: float
    title: str
    good: bool
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputView:
    """A name that came back."""

    name: str
    file: str
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
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
class LineView:
    """A printed line and the stage or rank that it came from."""

    source: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
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
    accepted_at_unix_s: float | None = None
    started_at_unix_s: float | None = None
    updated_at_unix_s: float | None = None
    ended_at_unix_s: float | None = None
    host_attempts: int = 0
    stages: tuple[StageView, ...] = ()
    source_rows: int | None = None
    ranks: tuple[RankView, ...] = ()
    world_size: int = 0
    resized_to: tuple[int, int] | None = None
    generation: int = 0
    step: int = 0
    total_steps: int | None = None
    epoch: int | None = 0
    rows: int = 0
    rate: RateView = RateView()
    metrics: tuple[tuple[str, float], ...] = ()
    curve: tuple[tuple[int, float], ...] = ()
    curve_stride: int = 1
    checkpoint_step: int | None = None
    checkpoint_path: str = ""
    cards: tuple[CardView, ...] = ()
    slots: tuple[SlotView, ...] = ()
    outputs: tuple[OutputView, ...] = ()
    lines: tuple[LineView, ...] = ()
    num_lines: int = 0
    error: str = ""
    error_where: str = ""
    traceback_text: str = ""

    @property
    def ended(self) -> bool:
        return self.state in ENDED

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
        if self.run_kind == "training" and self.total_steps:
            return min(1.0, self.step / self.total_steps)
        if self.run_kind == "pipeline" and self.source_rows and self.stages:
            return min(1.0, self.stages[0].rows_in / self.source_rows)
        return None


def fold(view: RunView, record: ev.Record) -> RunView:
    """Give the view after ``record``; a record that the view has already seen changes nothing."""
    if record.number <= view.number:
        return view
    step = _STEPS[type(record.event)]
    view = step(view, record.event, record.at_unix_s)
    return replace(view, number=record.number, updated_at_unix_s=record.at_unix_s)


def fold_all(view: RunView, records: Iterable[ev.Record]) -> RunView:
    """Fold many records in their order."""
    for record in records:
        view = fold(view, record)
    return view


def _run_accepted(view: RunView, event: ev.RunAccepted, at_unix_s: float) -> RunView:
    fresh = RunView(name=view.name) if event.resumed else view
    return replace(
        fresh,
        run_kind=event.run_kind,
        folder=event.folder,
        simulated_gpus=event.simulated_gpus,
        resumed=event.resumed,
        cards=view.cards,
        state="starting",
        accepted_at_unix_s=at_unix_s,
        stages=tuple(StageView(name=name) for name in event.stages),
    )


def _host_started(view: RunView, event: ev.HostStarted, at_unix_s: float) -> RunView:
    if event.attempt == 1:
        return replace(view, host_attempts=1)
    facts = (("host", f"process {event.pid}, start {event.attempt}"),)
    card = CardView(at_unix_s=at_unix_s, title="The run's host was lost and came back", good=True, facts=facts)
    return replace(view, host_attempts=event.attempt, cards=(*view.cards, card))


def _run_started(view: RunView, _: ev.RunStarted, at_unix_s: float) -> RunView:
    state: RunState = view.state if view.state == "stopping" else "running"
    return replace(view, state=state, reason="", started_at_unix_s=view.started_at_unix_s or at_unix_s)


def _run_waited(view: RunView, event: ev.RunWaited, _: float) -> RunView:
    return replace(view, state="waiting", reason=event.reason)


def _run_ended(view: RunView, event: ev.RunEnded, at_unix_s: float) -> RunView:
    closed = tuple(replace(slot, released_at_unix_s=slot.released_at_unix_s or at_unix_s) for slot in view.slots)
    view = replace(view, state=event.state, ended_at_unix_s=at_unix_s, reason="", slots=closed)
    return replace(view, error=event.error or view.error)


def _output_ready(view: RunView, event: ev.OutputReady, _: float) -> RunView:
    output = OutputView(name=event.name, file=event.file, num_bytes=event.num_bytes)
    return replace(view, outputs=(*(each for each in view.outputs if each.name != event.name), output))


def _user_failed(view: RunView, event: ev.UserFailed, _: float) -> RunView:
    return replace(view, error=event.error, error_where=event.where, traceback_text=event.traceback_text)


def _lines_printed(view: RunView, event: ev.LinesPrinted, _: float) -> RunView:
    lines = (*view.lines, *(LineView(source=event.source, text=text) for text in event.lines))[-MAX_LINES:]
    return replace(view, lines=lines, num_lines=view.num_lines + len(event.lines) + event.num_dropped)


def _slots_held(view: RunView, event: ev.SlotsHeld, at_unix_s: float) -> RunView:
    slot = SlotView(holder=event.holder, num_cpus=event.num_cpus, num_gpus=event.num_gpus, held_at_unix_s=at_unix_s)
    return replace(view, slots=(*view.slots, slot))


def _slots_released(view: RunView, event: ev.SlotsReleased, at_unix_s: float) -> RunView:
    def close(slot: SlotView) -> SlotView:
        mine = slot.holder == event.holder and slot.released_at_unix_s is None
        return replace(slot, released_at_unix_s=at_unix_s) if mine else slot

    return replace(view, slots=tuple(close(slot) for slot in view.slots))


def _on_stage(view: RunView, name: str, change: Callable[[StageView], StageView]) -> RunView:
    return replace(view, stages=tuple(change(stage) if stage.name == name else stage for stage in view.stages))


def _replica_started(view: RunView, event: ev.ReplicaStarted, _: float) -> RunView:
    replica = ReplicaView(replica=event.replica, pid=event.pid, node=event.node, start_s=event.start_s)
    return _on_stage(view, event.stage, lambda stage: replace(stage, replicas=(*stage.replicas, replica)))


def _replica_sampled(view: RunView, event: ev.ReplicaSampled, _: float) -> RunView:
    def count(replica: ReplicaView) -> ReplicaView:
        if replica.replica != event.replica:
            return replica
        return replace(
            replica,
            rows_in=event.rows_in,
            rows_out=event.rows_out,
            busy_s=event.busy_s,
            starved_s=event.starved_s,
            blocked_s=event.blocked_s,
        )

    return _on_stage(view, event.stage, lambda stage: replace(stage, replicas=tuple(map(count, stage.replicas))))


def _replica_gone(view: RunView, event: ev.ReplicaEnded | ev.ReplicaLost, _: float) -> RunView:
    def close(replica: ReplicaView) -> ReplicaView:
        return replace(replica, gone=True) if replica.replica == event.replica else replica

    return _on_stage(view, event.stage, lambda stage: replace(stage, replicas=tuple(map(close, stage.replicas))))


def _replica_lost(view: RunView, event: ev.ReplicaLost, at_unix_s: float) -> RunView:
    facts = (("why", event.cause), ("rows taken again", f"{event.num_rows_again:,}"))
    card = CardView(at_unix_s=at_unix_s, title=f"{event.replica} was lost", good=True, facts=facts)
    return replace(_replica_gone(view, event, at_unix_s), cards=(*view.cards, card))


def _span_restarted(view: RunView, event: ev.SpanRestarted, at_unix_s: float) -> RunView:
    facts = (("why", event.reason), ("part of the source", str(event.span)))
    card = CardView(at_unix_s=at_unix_s, title="Rows were lost on their way and are made again", good=True, facts=facts)
    return replace(view, cards=(*view.cards, card))


def _batch_halved(view: RunView, event: ev.BatchHalved, at_unix_s: float) -> RunView:
    facts = (("replica", event.replica), ("rows a call now", str(event.num_rows)))
    card = CardView(at_unix_s=at_unix_s, title=f"A batch of {event.stage} did not fit the GPU", good=True, facts=facts)
    return replace(view, cards=(*view.cards, card))


def _rows_quarantined(view: RunView, event: ev.RowsQuarantined, at_unix_s: float) -> RunView:
    """One card a stage: that of its latest bad row. How many there are stands in the stage's lane."""
    title = f"{event.stage} put rows aside"
    card = CardView(at_unix_s=at_unix_s, title=title, good=False, facts=(("latest", event.error),))
    return replace(view, cards=(*(each for each in view.cards if each.title != title), card))


def _stage_sampled(view: RunView, event: ev.StageSampled, at_unix_s: float) -> RunView:
    return _on_stage(
        view,
        event.stage,
        lambda stage: replace(
            stage,
            num_replicas=event.num_replicas,
            rows_waiting=event.rows_waiting,
            rows_in=event.rows_in,
            rows_out=event.rows_out,
            num_bad=event.num_bad,
            word=event.word,
            rate=stage.rate.at(at_unix_s, event.rows_out),
        ),
    )


def _source_counted(view: RunView, event: ev.SourceCounted, _: float) -> RunView:
    return replace(view, source_rows=event.num_rows)


def _worker_started(view: RunView, event: ev.WorkerStarted, _: float) -> RunView:
    rank = RankView(worker=event.worker, pid=event.pid, node=event.node, device=event.device)
    return replace(view, ranks=(*(each for each in view.ranks if each.worker != event.worker), rank))


def _worker_ready(view: RunView, event: ev.WorkerReady, _: float) -> RunView:
    ranks = tuple(replace(each, ready=True) if each.worker == event.worker else each for each in view.ranks)
    return replace(view, ranks=ranks)


def _world_broken(view: RunView, _: ev.WorldBroken, __: float) -> RunView:
    return replace(view, state="recovering") if view.state == "running" else view


def _world_formed(view: RunView, event: ev.WorldFormed, _: float) -> RunView:
    place = {worker: rank for rank, worker in enumerate(event.workers)}
    ranks = tuple(replace(each, rank=None if each.lost else place.get(each.worker)) for each in view.ranks)
    return replace(view, ranks=ranks, world_size=len(event.workers), generation=event.generation)


def _step_committed(view: RunView, event: ev.StepCommitted, at_unix_s: float) -> RunView:
    curve, stride = view.curve, view.curve_stride
    if "loss" in event.metrics and (not curve or event.step - curve[-1][0] >= stride):
        curve = (*curve, (event.step, event.metrics["loss"]))
        if len(curve) > MAX_CURVE_POINTS:
            curve, stride = curve[1::2], stride * 2
    return replace(
        view,
        state=view.state if view.state == "stopping" else "running",
        step=event.step,
        epoch=event.epoch,
        rows=view.rows if event.num_rows is None else event.num_rows,
        total_steps=event.total_steps,
        rate=view.rate if event.num_rows is None else view.rate.at(at_unix_s, event.num_rows),
        metrics=tuple(event.metrics.items()),
        curve=curve,
        curve_stride=stride,
    )


def _worker_busy(view: RunView, event: ev.WorkerBusy, _: float) -> RunView:
    ranks = tuple(replace(each, busy_with=event.what) if each.worker == event.worker else each for each in view.ranks)
    return replace(view, ranks=ranks)


def _worker_lost(view: RunView, event: ev.WorkerLost, _: float) -> RunView:
    ranks = tuple(replace(each, lost=True, rank=None, busy_with="") if each.worker == event.worker else each for each in view.ranks)
    recovering = event.rank is not None and view.state == "running"
    return replace(view, ranks=ranks, state="recovering" if recovering else view.state)


def _worker_ended(view: RunView, event: ev.WorkerEnded, _: float) -> RunView:
    return replace(view, ranks=tuple(each for each in view.ranks if each.worker != event.worker))


def _resized(view: RunView, event: ev.Resized, _: float) -> RunView:
    return replace(view, resized_to=(event.min_workers, event.max_workers))


def _decided(view: RunView, _: ev.Decided, __: float) -> RunView:
    return view


def _recovered(view: RunView, event: ev.Recovered, at_unix_s: float) -> RunView:
    found = "not known" if event.detected_after_s is None else f"after {event.detected_after_s:.2f} s"
    after = event.recovered_after_s
    next_commit = (
        [] if after is None else [("next commit", f"step {event.step_before + 1}, {after:.2f} s after the loss was known")]
    )
    redone = "not known what was in flight" if event.steps_redone is None else f"{event.steps_redone} step in flight redone"
    facts = (
        *([("cause", event.cause)] if event.cause else []),
        ("found", found),
        ("lost", f"{event.steps_lost} committed steps; {redone}"),
        ("world", f"{event.world_before} → {event.world_after}"),
        ("done", event.remedy),
        *next_commit,
        *([("stood at", event.stack)] if event.stack else []),
    )
    card = CardView(at_unix_s=at_unix_s, title=event.what, good=event.steps_lost == 0, facts=facts)
    return replace(view, cards=(*view.cards, card))


def _checkpoint_saved(view: RunView, event: ev.CheckpointSaved, _: float) -> RunView:
    return replace(view, checkpoint_step=event.step, checkpoint_path=event.path)


def _checkpoint_failed(view: RunView, event: ev.CheckpointFailed, at_unix_s: float) -> RunView:
    title = "Checkpoints cannot be written"
    facts = (("newest try", f"step {event.step}, to {event.path}"), ("reason", event.reason))
    card = CardView(at_unix_s=at_unix_s, title=title, good=False, facts=facts)
    return replace(view, cards=(*(each for each in view.cards if each.title != title), card))


def _stop_asked(view: RunView, _: ev.StopAsked, __: float) -> RunView:
    return view if view.ended else replace(view, state="stopping")


def _drill_started(view: RunView, _: ev.DrillStarted, __: float) -> RunView:
    return view


def _drill_ended(view: RunView, event: ev.DrillEnded, at_unix_s: float) -> RunView:
    title = f"Drill {event.action}: {'passed' if event.passed else 'not passed'}"
    card = CardView(at_unix_s=at_unix_s, title=title, good=event.passed, facts=(("verdict", event.verdict),))
    return replace(view, cards=(*view.cards, card))


_STEPS: dict[type, Callable[[RunView, Any, float], RunView]] = {
    ev.RunAccepted: _run_accepted,
    ev.HostStarted: _host_started,
    ev.RunStarted: _run_started,
    ev.RunWaited: _run_waited,
    ev.RunEnded: _run_ended,
    ev.OutputReady: _output_ready,
    ev.UserFailed: _user_failed,
    ev.LinesPrinted: _lines_printed,
    ev.SlotsHeld: _slots_held,
    ev.SlotsReleased: _slots_released,
    ev.ReplicaStarted: _replica_started,
    ev.ReplicaSampled: _replica_sampled,
    ev.ReplicaEnded: _replica_gone,
    ev.ReplicaLost: _replica_lost,
    ev.SpanRestarted: _span_restarted,
    ev.BatchHalved: _batch_halved,
    ev.RowsQuarantined: _rows_quarantined,
    ev.StageSampled: _stage_sampled,
    ev.SourceCounted: _source_counted,
    ev.WorkerStarted: _worker_started,
    ev.WorkerReady: _worker_ready,
    ev.WorldFormed: _world_formed,
    ev.WorldBroken: _world_broken,
    ev.StepCommitted: _step_committed,
    ev.WorkerBusy: _worker_busy,
    ev.WorkerLost: _worker_lost,
    ev.WorkerEnded: _worker_ended,
    ev.Resized: _resized,
    ev.Decided: _decided,
    ev.Recovered: _recovered,
    ev.CheckpointSaved: _checkpoint_saved,
    ev.CheckpointFailed: _checkpoint_failed,
    ev.StopAsked: _stop_asked,
    ev.DrillStarted: _drill_started,
    ev.DrillEnded: _drill_ended,
}
