"""A pipeline's run as its host drives it: rows go from stage to stage, replicas where they are needed, results to the sink."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from typing import Any, Literal

import cloudpickle
import ray

from raykit.commands import Apply, Command, Drill, Hurry, Stop
from raykit.engine.pipeline.adviser import Adviser
from raykit.engine.pipeline.blocks import rows_of
from raykit.engine.pipeline.calls import BadRow, Position, Waited
from raykit.engine.pipeline.drills import Drills
from raykit.engine.pipeline.flow import Flow
from raykit.engine.pipeline.gpus import GpuUses
from raykit.engine.pipeline.ledger import Ledger
from raykit.engine.pipeline.meter import Meter
from raykit.engine.pipeline.nodes import free_nodes, unplaced, with_held
from raykit.engine.pipeline.replicas import Outcome, Replicas, StageFailedError, needs_of
from raykit.engine.pipeline.row_order import keys_of
from raykit.engine.pipeline.sink import Sink, publish
from raykit.engine.pipeline.source import Source
from raykit.engine.pipeline.trials import Trials, way_of
from raykit.engine.run import RunContext, StoppedError, UserCodeError, as_user_error
from raykit.errors import RunError
from raykit.events import (
    CpusShared,
    Decided,
    Event,
    OutputReady,
    ReplicaEnded,
    RowsQuarantined,
    RunStarted,
    SlotsReleased,
    SourceCounted,
    SpanRestarted,
    StageSampled,
    StageWord,
)
from raykit.policy.advice import Limit, StageUse
from raykit.policy.balance import StageLoad, decide
from raykit.spec import PipelineSpec, StageSpec
from raykit.wire.payload import SOURCE

TICK_S = 0.05
BALANCE_S = 0.25
SAMPLE_S = 0.5
MIN_SPAN_ROWS = 64
BATCHES_A_SPAN = 32  # the last batch of a span may be short
HALF = 0.5
LEAST_BUSY = 0.05  # of a stage's time; what it uses while it works is not known better
STORE_SHARE = 0.4  # of the object store, for rows under way
STALE_S = 1.0  # what Ray says of free resources may be that old
MAX_BUILD_S = 60.0
MAX_AWAITED_S = 60.0  # a stage that took no rows in this time no longer keeps the others from being balanced
MAX_DEATHS = 6
STRIKES = 2  # so many replicas have to die at a row before it is put aside
STRIKES_TO_FAIL = 3  # or ends the run: kills from outside may twice meet the same row by chance
KILLED = "the replica died twice while it took this row"


class PipelineRun:
    """Keeps every stage in work as far as rows and room allow it."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._spec: PipelineSpec = context.spec
        self._specs = list(self._spec.stages)
        num_stages = len(self._specs)
        numbers = itertools.count()
        self._stages = [Replicas(context, spec, numbers, is_last=place == num_stages - 1) for place, spec in enumerate(self._specs)]
        self._flow, self._meter, self._drills = Flow(num_stages), Meter(num_stages), Drills(context)
        self._trials, self._gpus = Trials(context), GpuUses(context)
        applied = context.view().changes if context.attempt > 1 else ()
        self._adviser = Adviser(context, self._meter, self._trials, applied)
        self._waited: list[Waited] = ["starved"] * num_stages
        self._counted: int | None = None
        self._words: Sequence[StageWord | Literal[""]] = ()
        self._looked_s = self._balanced_s = self._sampled_s = self._scaled_s = 0.0
        self._store_bytes, self._stored_s = math.inf, 0.0

    def execute(self) -> None:
        if self._context.stop_asked.is_set():
            raise StoppedError
        if self._context.attempt > 1:
            self._release_what_an_earlier_host_held()
        self._sink = Sink(self._context.folder)
        self._ledger = Ledger(self._sink)
        self._source = self._open_source()
        self._store_bytes = STORE_SHARE * ray.cluster_resources().get("object_store_memory", math.inf)
        self._context.emit(RunStarted())
        if self._spec.cpu_share < 1 and self._context.attempt == 1:
            num_cpus = ray.cluster_resources().get("CPU", 0.0)
            self._context.emit(CpusShared(share=self._spec.cpu_share, num_stages=len(self._specs), num_cpus=num_cpus))
        self._begun_s = time.monotonic()
        try:
            self._wait_for_source()
            for stage in self._stages:
                stage.scale(stage.spec.min_replicas)
            while not (self._source.is_over and not self._flow.num_spans):
                if self._context.stop_asked.is_set():
                    raise StoppedError
                self._take_advice()
                self._feed()
                self._dispatch()
                self._drills.strike(self._stages)
                self._collect()
                self._store()
                self._balance()
                self._sample()
        except StageFailedError as exc:
            raise UserCodeError(*exc.args) from None
        finally:
            self._drills.end()
            for stage in self._stages:
                stage.end()
            self._source.close()
            self._gpus.close()
            self._commit()
            self._sample(now=True)
        self._publish()

    def command(self, command: Command) -> None:
        if isinstance(command, Stop):
            self._context.stop_asked.set()
        elif isinstance(command, Drill) and command.action == "kill-worker":
            self._drills.add(command)
        elif isinstance(command, Apply):
            self._adviser.apply()
        elif not isinstance(command, Hurry):  # Ray starts its replicas
            raise RunError("A pipeline has no ranks.", "Of a pipeline: %ray drill kill-worker, or kill-host.")

    def report(self, source: str, events: Sequence[Event], pulse: Any) -> Sequence[Event]:
        """Know which replicas are there, and where a careful one is, before it may die there."""
        stage = next((stage for stage in self._stages if stage.spec.name == source.rpartition("-")[0]), None)
        if stage is not None:
            stage.hear_of(source)
            if isinstance(pulse, Position):
                stage.note(pulse.number, pulse.row)
        return events

    def _release_what_an_earlier_host_held(self) -> None:
        """Write down that its replicas ended with it."""
        view = self._context.view()
        gone = [(stage.name, each.replica) for stage in view.stages for each in stage.replicas if not each.gone]
        self._context.emit(*(ReplicaEnded(stage=stage, replica=replica) for stage, replica in gone))
        self._context.emit(*(SlotsReleased(holder=slot.holder) for slot in view.held))

    def _open_source(self) -> Source:
        payload = self._context.payload()
        try:
            value = payload.open_extra(SOURCE)
        except Exception as exc:
            raise as_user_error(exc, payload, "the source") from exc
        largest = max(spec.batch_size or spec.concurrency for spec in self._spec.stages)
        span_rows = max(MIN_SPAN_ROWS, BATCHES_A_SPAN * largest)
        return Source(self._context, value, span_rows=span_rows, written=frozenset(self._sink.spans), payload=payload)

    def _wait_for_source(self) -> None:
        """Let a dataset of the user's be made before the stages take the CPUs that it needs."""
        while not self._source.is_ready:
            if self._context.stop_asked.wait(TICK_S):
                raise StoppedError

    def _take_advice(self) -> None:
        """Let stages work as the advice says that was applied."""
        self._adviser.take_up()
        for place, stage in enumerate(self._stages):
            spec = self._adviser.changed(self._spec.stages[place])
            if spec == self._specs[place]:
                continue
            if way_of(spec) != way_of(self._specs[place]):
                self._meter.forget(place)
                self._trials.forget(spec.name)
            self._specs[place] = spec
            stage.change(spec)
        for stage in self._stages:
            stage.renew()

    def _feed(self) -> None:
        """Take rows from the source while the first stage has room."""
        while self._has_room(0) and (given := self._source.take()) is not None:
            piece, closed = given
            if piece is not None:
                self._flow.add(piece)
            for span in closed:
                self._flow.close(span)
        if self._source.num_rows is not None and self._source.num_rows != self._counted:
            self._counted = self._source.num_rows
            self._context.emit(SourceCounted(num_rows=self._counted))

    def _dispatch(self) -> None:
        """Give work to whoever is free, the last stages first: they make room for the others."""
        for place in reversed(range(len(self._stages))):
            stage = self._stages[place]
            while (member := stage.free()) is not None:
                if not self._has_room(place + 1):
                    self._waited[place] = "blocked" if self._flow.rows_waiting(place) else "starved"
                    break
                is_new = self._meter.row_s(place) is None
                way, is_trial = self._trials.way(stage.spec)
                work = self._flow.take(
                    place,
                    most=self._call_rows(place),
                    batch=way.batch_size or 1,
                    partial=is_new,
                    stalled=not any(each.has_calls for each in self._stages),
                )
                if work is None:
                    self._waited[place] = "starved"
                    break
                stage.submit(member, work, self._waited[place], way, is_trial=is_trial)

    def _has_room(self, place: int) -> bool:
        """Say whether a stage may get more rows: it has less than two calls for each replica, and the store is not full."""
        if place == len(self._stages):
            return True
        call_rows, waiting = self._call_rows(place), self._flow.rows_waiting(place)
        is_full = self._flow.num_bytes >= self._store_bytes and waiting >= call_rows
        return waiting < 2 * call_rows * (self._stages[place].num_alive + 1) and not is_full

    def _call_rows(self, place: int) -> int:
        way, _ = self._trials.way(self._specs[place])
        return way.rows_of_call(self._meter.row_s(place))

    def _collect(self) -> None:
        """Take in what is over; blocking up to a tick."""
        waits = [ref for stage in self._stages for ref in stage.waits]
        if not waits:
            time.sleep(TICK_S)
            return
        first, _ = ray.wait(waits, timeout=TICK_S)
        over = set(ray.wait(waits, num_returns=len(waits), timeout=0)[0]) if first else set()
        for stage in self._stages:
            for outcome in itertools.chain(stage.hear(over), stage.overdue()):
                self._take_in(outcome)

    def _take_in(self, outcome: Outcome) -> None:
        work, report = outcome.work, outcome.report
        spec = self._specs[work.stage]
        if outcome.unsendable:
            self._check_rows(outcome)
        elif report is None:
            self._take_in_loss(outcome)
        elif report.failure is not None and outcome.is_trial:
            self._trials.failed()
            self._flow.again(work)
        elif report.failure is not None:
            raise UserCodeError(*report.failure)
        elif report.is_guess and work.gaps:
            self._drills.done(work)
            self._flow.again_unbroken(work)
        elif self._flow.done(
            work, ((block, *size) for block, size in zip(outcome.blocks, report.blocks, strict=True)), report.origins
        ):
            self._drills.done(work)
            if outcome.is_trial:
                self._trials.take_in(outcome.replica, report)
            else:
                self._meter.add(work.stage, report)
            self._ledger.add(work.span, spec.name, report)
            if report.bad:
                self._put_aside(work.span, spec, report.bad)

    def _check_rows(self, outcome: Outcome) -> None:
        """Have a call made again row by row, to find the row of which something was made that cannot be sent on."""
        if outcome.is_trial:
            self._trials.failed()
        if outcome.work.checked:
            raise UserCodeError(self._specs[outcome.work.stage].name, outcome.unsendable, "")
        self._flow.again(outcome.work, checked=True)

    def _take_in_loss(self, outcome: Outcome) -> None:
        """Have work made again that died with its replica; a row that kills twice is put aside, or ends the run."""
        work, suspect = outcome.work, outcome.suspect
        spec = self._specs[work.stage]
        if outcome.is_trial:
            self._trials.failed()
        if outcome.lost_input:
            if self._flow.is_current(work):
                self._restart(work.span, f"{spec.name} could not read its rows: {outcome.lost_input}")
            return
        if not outcome.is_guilty:
            self._flow.again(work)
            return
        strikes = 0 if suspect is None else work.strikes + 1 if suspect == work.suspect else 1
        if suspect is None or strikes < (STRIKES if spec.on_error == "quarantine" else STRIKES_TO_FAIL):
            if work.deaths >= MAX_DEATHS:
                raise UserCodeError(spec.name, f"{work.deaths + 1} replicas died over the same {work.num_rows} rows", "")
            self._flow.again(work, deaths=work.deaths + 1, suspect=suspect, strikes=strikes)
        elif spec.on_error != "quarantine":
            raise UserCodeError(spec.name, f"row {suspect} of a call kills its replica: {outcome.cause}", "")
        else:
            row = rows_of((ray.get(piece.block), piece.start, piece.stop) for piece in work.pieces)[suspect]
            self._put_aside(work.span, spec, [BadRow(row=cloudpickle.dumps(row), error=KILLED, traceback_text="")])
            self._flow.again(work, deaths=1, suspect=None, strikes=0, bad=(*work.bad, suspect))

    def _put_aside(self, span: int, spec: StageSpec, rows: Sequence[BadRow]) -> None:
        """Put rows into quarantine, up to the stage's budget."""
        self._ledger.put_aside(span, spec.name, rows)
        last = rows[-1]
        self._context.emit(RowsQuarantined(stage=spec.name, num_rows=len(rows), error=last.error))
        rows_in, _, num_bad = self._ledger.totals(spec.name)
        if not spec.allows_bad(num_bad, rows_in):
            said = f"{num_bad} rows were put aside, and max_bad is {spec.max_bad:g}; the last: {last.error}"
            raise UserCodeError(spec.name, said, last.traceback_text)

    def _restart(self, span: int, reason: str) -> None:
        self._context.emit(SpanRestarted(span=span, reason=reason))
        self._flow.restart(span)
        self._ledger.forget(span)

    def _store(self) -> None:
        """Bring spans that are through to the sink."""
        begun_s = time.monotonic()
        for span, pieces in self._flow.through():
            try:
                blocks = ray.get([piece.block for piece in pieces])
            except ray.exceptions.ObjectLostError as exc:
                self._restart(span, type(exc).__name__)
                continue
            tables = [block.slice(piece.start, piece.num_rows) for block, piece in zip(blocks, pieces, strict=True)]
            self._sink.add(self._ledger.result(span, tables, keys_of([piece.keys for piece in pieces])))
            self._flow.forget(span)
        if self._sink.is_due:
            self._commit()
        self._stored_s += time.monotonic() - begun_s

    def _commit(self) -> None:
        for span in self._sink.commit():
            self._ledger.forget(span)

    def _balance(self) -> None:
        """Scale stages as the policy says, on what was measured."""
        now_s = time.monotonic()
        passed_s, self._looked_s = now_s - (self._looked_s or now_s), now_s
        for place, stage in enumerate(self._stages):
            self._meter.spend(place, self._waited[place] if stage.has_idle else "busy", passed_s)
        if now_s - self._balanced_s < BALANCE_S or now_s - self._scaled_s < STALE_S:
            return
        self._balanced_s = now_s
        waiting = unplaced()
        nums_unplaced = [stage.num_unplaced(waiting) for stage in self._stages]
        if any(stage.num_starting for stage in self._stages) and now_s - self._scaled_s < MAX_BUILD_S and not any(nums_unplaced):
            return
        loads = [self._load(place, num_unplaced) for place, num_unplaced in enumerate(nums_unplaced)]
        free = free_nodes()
        held = [(member.node_id, load.needs) for load, stage in zip(loads, self._stages, strict=True) for member in stage.members]
        total = self._source.num_rows
        rows_left = math.inf if total is None else max(0.0, total - self._meter.source_rows_through())
        start_s = max(stage.start_s for stage in self._stages)
        nodes = with_held(free, held)
        decisions = decide(loads, nodes, rows_left=rows_left, start_s=start_s)
        if decisions or any(stage.has_outdated for stage in self._stages):
            self._adviser.moved()
        else:
            self._gpus.look()
            uses = [self._use(place, load) for place, load in enumerate(loads)]
            self._adviser.look(uses, nodes, limit=self._limit(), now_s=now_s)
        for decision in decisions:
            self._scaled_s = now_s
            about = (decision.stage, str(decision.num_replicas))
            self._context.emit(Decided(decision="Scale", about=about, reason=decision.reason))
            next(stage for stage in self._stages if stage.spec.name == decision.stage).scale(decision.num_replicas)

    def _load(self, place: int, num_unplaced: int) -> StageLoad:
        spec = self._specs[place]
        is_new = self._meter.row_s(place) is None and time.monotonic() - self._begun_s < MAX_AWAITED_S
        return StageLoad(
            stage=spec.name,
            needs=needs_of(spec),
            num_replicas=self._stages[place].num_alive,
            min_replicas=spec.min_replicas,
            max_replicas=spec.max_replicas,
            work_s=self._meter.source_row_s(place),
            is_over=self._source.is_over and self._flow.is_over(place),
            num_unplaced=num_unplaced,
            is_awaited=is_new and (self._stages[place].has_calls or self._flow.rows_waiting(place) > 0),
        )

    def _use(self, place: int, load: StageLoad) -> StageUse:
        spec, use = self._specs[place], self._meter.use(place)
        gpus = self._gpus.of(member.name for member in self._stages[place].members if member.pid)
        at_work = max(self._meter.busy_share(place), LEAST_BUSY)
        return StageUse(
            load=load,
            batch_size=spec.batch_size,
            concurrency=spec.concurrency,
            can_overlap=spec.batch_size is None and (self._stages[place].is_async or spec.concurrency > 1),
            used_cpus=use.cpu_s / use.taken_s if use else None,
            wanted_cpus=use.wanted_s / use.taken_s if use else None,
            peak_memory_bytes=use.peak_bytes if use else None,
            used_gpus=min(gpus[0] / at_work, spec.num_gpus) if gpus else None,
            gpu_memory_share=gpus[1] if gpus else None,
        )

    def _limit(self) -> Limit | None:
        """Say what is slower than every stage."""
        if self._meter.store_share > HALF:
            return "sink"
        return "source" if not self._source.is_over and set(self._words) == {"starved"} else None

    def _sample(self, *, now: bool = False) -> None:
        """Tell how the stages fare, each half second."""
        now_s = time.monotonic()
        if now_s - self._sampled_s < SAMPLE_S and not now:
            return
        self._meter.store(self._stored_s, now_s - self._sampled_s)
        self._sampled_s, self._stored_s = now_s, 0.0
        waiting = [self._flow.rows_waiting(place) for place in range(len(self._stages))]
        self._words = self._meter.words(waiting)
        for stage, rows_waiting, word in zip(self._stages, waiting, self._words, strict=True):
            rows_in, rows_out, num_bad = self._ledger.totals(stage.spec.name)
            sample = StageSampled(
                stage=stage.spec.name,
                num_replicas=stage.num_alive - stage.num_starting,
                rows_waiting=rows_waiting,
                rows_in=rows_in,
                rows_out=rows_out,
                num_bad=num_bad,
                word=word,
            )
            self._context.emit(sample)

    def _publish(self) -> None:
        """Let the parts appear where they belong."""
        target = self._spec.output_path or str(self._context.folder / "parts")
        size = sum(part.stat().st_size for part in self._sink.parts.iterdir())
        publish(self._sink.parts, target, prefix=f"{self._context.name.replace('#', '-')}-" if self._spec.output_path else "")
        self._context.emit(OutputReady(name=next(iter(self._spec.outputs), "rows"), file=target, num_bytes=size))
