"""A pipeline's run as its host drives it: rows go from stage to stage, replicas where they are needed, results to the sink."""

from __future__ import annotations

import itertools
import math
import pickle
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, Literal

import ray

from raykit.commands import Command, Stop
from raykit.engine.pipeline.blocks import rows_of
from raykit.engine.pipeline.flow import Flow
from raykit.engine.pipeline.nodes import free_nodes
from raykit.engine.pipeline.replicas import Outcome, Replicas, StageFailedError
from raykit.engine.pipeline.sink import Sink, SpanResult, publish
from raykit.engine.pipeline.source import Source
from raykit.engine.pipeline.stages import Position, Waited
from raykit.engine.run import RunContext, StoppedError, UserCodeError, as_user_error
from raykit.errors import RunError
from raykit.events import (
    Decided,
    Event,
    OutputReady,
    RowsQuarantined,
    RunStarted,
    SourceCounted,
    SpanRestarted,
    StageSampled,
    StageWord,
)
from raykit.policy.balance import Cost, Resources, StageLoad, decide
from raykit.policy.bottleneck import StageTimes, words
from raykit.spec import PipelineSpec, StageSpec
from raykit.wire.payload import PipelineWork

TICK_S = 0.05
BALANCE_S = 0.25
SAMPLE_S = 0.5
CALL_S = 0.2  # a call of a replica is made of so many rows that it takes about this long
MIN_SPAN_ROWS = 64
BATCHES_A_SPAN = 32  # the last batch of a span may be short
STORE_SHARE = 0.4  # of the object store, for rows under way
STALE_S = 1.0  # what Ray says of free resources may be that old
MAX_BUILD_S = 60.0
MAX_AWAITED_S = 60.0  # a stage that took no rows in this time no longer keeps the others from being balanced
MAX_DEATHS = 6
LATE = 0.8  # what remains of a share at the next sample
SPENT = ("busy", "starved", "blocked")
KILLED = "the replica died twice while it took this row"


class PipelineRun:
    """Keeps every stage in work as far as rows and room allow it."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._spec: PipelineSpec = context.spec
        self._specs = self._spec.stages
        self._flow = Flow(len(self._specs))
        numbers = itertools.count()
        self._stages = [
            Replicas(context, spec, numbers, is_last=place == len(self._specs) - 1) for place, spec in enumerate(self._specs)
        ]
        self._costs = [(Cost(), Cost()) for _ in self._specs]  # of first calls, and of warm ones
        self._passed = [(0, 0) for _ in self._specs]  # rows in and out of all calls, for the ratio between stages
        self._rows_in: defaultdict[int, Counter[str]] = defaultdict(Counter)
        self._rows_out: defaultdict[int, Counter[str]] = defaultdict(Counter)
        self._bad: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
        self._waited: list[Waited] = ["starved"] * len(self._specs)
        self._spent_s = [dict.fromkeys(SPENT, 0.0) for _ in self._specs]  # of late, by each stage's replicas
        self._looked_s = self._balanced_s = self._sampled_s = self._scaled_s = 0.0
        self._store_bytes = math.inf

    def execute(self) -> None:
        if self._context.stop_asked.is_set():
            raise StoppedError
        self._sink = Sink(self._context.folder)
        self._source = self._open_source()
        self._store_bytes = STORE_SHARE * ray.cluster_resources().get("object_store_memory", math.inf)
        self._context.emit(RunStarted())
        self._begun_s = time.monotonic()
        try:
            for stage in self._stages:
                stage.scale(stage.spec.min_replicas)
            while not self._is_over():
                if self._context.stop_asked.is_set():
                    raise StoppedError
                self._feed()
                self._dispatch()
                self._collect()
                self._store()
                self._balance()
                self._sample()
        except StageFailedError as exc:
            raise UserCodeError(*exc.args) from None
        finally:
            for stage in self._stages:
                stage.end()
            self._source.close()
            self._commit()
            self._sample(now=True)
        self._publish()

    def command(self, command: Command) -> None:
        if isinstance(command, Stop):
            self._context.stop_asked.set()
        else:
            raise RunError("A pipeline has no ranks.", "Drill or resize a training run.")

    def report(self, source: str, events: Sequence[Event], pulse: Any) -> Sequence[Event]:
        """Note where a careful replica is, before it may die there."""
        if isinstance(pulse, Position):
            name = source.rpartition("-")[0]
            next(stage for stage in self._stages if stage.spec.name == name).note(pulse.number, pulse.row)
        return events

    def _open_source(self) -> Source:
        payload = self._context.payload()
        try:
            work: PipelineWork = payload.open()
        except Exception as exc:
            raise as_user_error(exc, payload, "the source") from exc
        if self._spec.source.form == "items":
            self._context.emit(SourceCounted(num_rows=min(len(work.source), self._spec.limit or len(work.source))))
        largest = max(spec.batch_size or spec.concurrency for spec in self._specs)
        span_rows = max(MIN_SPAN_ROWS, BATCHES_A_SPAN * largest)
        return Source(self._spec, work.source, span_rows=span_rows, written=frozenset(self._sink.spans), payload=payload)

    def _is_over(self) -> bool:
        return self._source.is_over and not self._flow.num_spans

    def _feed(self) -> None:
        """Take rows from the source while the first stage has room."""
        while self._has_room(0) and (given := self._source.take()) is not None:
            piece, closed = given
            if piece is not None:
                self._flow.add(piece)
            for span in closed:
                self._flow.close(span)

    def _dispatch(self) -> None:
        """Give work to whoever is free, the last stages first: they make room for the others."""
        for place in reversed(range(len(self._stages))):
            stage = self._stages[place]
            while (member := stage.free()) is not None:
                if not self._has_room(place + 1):
                    self._waited[place] = "blocked" if self._flow.rows_waiting(place) else "starved"
                    break
                batch = stage.spec.batch_size or 1
                work = self._flow.take(place, most=self._call_rows(place), batch=batch, partial=self._cost(place) is None)
                if work is None:
                    self._waited[place] = "starved"
                    break
                stage.submit(member, work, self._waited[place])

    def _has_room(self, place: int) -> bool:
        """Say whether a stage may get more rows: it has less than two calls for each replica, and the store is not full."""
        if place == len(self._stages):
            return True
        stage = self._stages[place]
        enough = 2 * self._call_rows(place) * (stage.num_alive + 1)
        waiting = self._flow.rows_waiting(place)
        return waiting < enough and (self._flow.num_bytes < self._store_bytes or waiting < self._call_rows(place))

    def _call_rows(self, place: int) -> int:
        """Give the rows of one call: whole batches, for about ``CALL_S``."""
        spec, cost_s = self._specs[place], self._cost(place)
        batch = spec.batch_size or 1
        if cost_s is None:
            return batch
        return max(spec.concurrency, batch * int(CALL_S / max(cost_s * batch, 1e-5)), batch)

    def _cost(self, place: int) -> float | None:
        """Give the seconds of a replica for a row of this stage."""
        first, warm = self._costs[place]
        return warm.per_row_s or first.per_row_s

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
        if report is None:
            self._take_in_loss(outcome)
            return
        if report.failure is not None:
            raise UserCodeError(*report.failure)
        if not self._flow.done(work, ((block, *size) for block, size in zip(outcome.blocks, report.blocks, strict=True))):
            return
        rows_out = sum(rows for rows, _ in report.blocks)
        self._costs[work.stage][report.is_warm].add(report.rows_in, report.taken_s)
        rows = self._passed[work.stage]
        self._passed[work.stage] = rows[0] + report.rows_in, rows[1] + rows_out
        self._rows_in[work.span][spec.name] += report.rows_in
        self._rows_out[work.span][spec.name] += rows_out
        if report.bad:
            self._put_aside(work.span, spec, [(bad.row, bad.error, bad.traceback_text) for bad in report.bad])

    def _take_in_loss(self, outcome: Outcome) -> None:
        """Have work made again that died with its replica; a row that kills twice is put aside, or ends the run."""
        work, suspect = outcome.work, outcome.suspect
        spec = self._specs[work.stage]
        if outcome.lost_input:
            self._restart(work.span, f"{spec.name} could not read its rows: {outcome.lost_input.splitlines()[0]}")
        elif not outcome.is_guilty:
            self._flow.again(work)
        elif suspect is None or suspect != work.suspect:
            if work.deaths >= MAX_DEATHS:
                raise UserCodeError(spec.name, f"{work.deaths + 1} replicas died over the same {work.num_rows} rows", "")
            self._flow.again(work, deaths=work.deaths + 1, suspect=suspect)
        elif spec.on_error != "quarantine":
            raise UserCodeError(
                spec.name, f"row {suspect} of a call kills its replica (a crash in native code, or out of memory)", ""
            )
        else:
            row = rows_of((ray.get(piece.block), piece.start, piece.stop) for piece in work.pieces)[suspect]
            self._put_aside(work.span, spec, [(pickle.dumps(row), KILLED, "")])
            self._flow.again(work, deaths=1, suspect=None, bad=(*work.bad, suspect))

    def _put_aside(self, span: int, spec: StageSpec, rows: Sequence[tuple[bytes, str, str]]) -> None:
        self._bad[span] += [{"stage": spec.name, "error": error, "traceback": frames, "row": row} for row, error, frames in rows]
        self._context.emit(RowsQuarantined(stage=spec.name, num_rows=len(rows), error=rows[-1][1]))
        num_bad = self._num_bad(spec.name)
        if not spec.allows_bad(num_bad, self._total(self._sink.rows_in, self._rows_in, spec.name)):
            raise UserCodeError(
                spec.name, f"{num_bad} rows were put aside, and max_bad is {spec.max_bad:g}; the last: {rows[-1][1]}", rows[-1][2]
            )

    def _restart(self, span: int, reason: str) -> None:
        self._context.emit(SpanRestarted(span=span, reason=reason))
        self._flow.restart(span)
        self._forget(span)

    def _forget(self, span: int) -> None:
        for each in (self._rows_in, self._rows_out, self._bad):
            each.pop(span, None)

    def _store(self) -> None:
        """Bring spans that are through to the sink."""
        for span, blocks in self._flow.through():
            try:
                tables = ray.get(blocks)
            except ray.exceptions.ObjectLostError as exc:
                self._restart(span, type(exc).__name__)
                continue
            result = SpanResult(
                span=span, tables=tables, bad=self._bad[span], rows_in=self._rows_in[span], rows_out=self._rows_out[span]
            )
            self._sink.add(result)
            self._flow.forget(span)
        if self._sink.is_due:
            self._commit()

    def _commit(self) -> None:
        for span in self._sink.commit():
            self._forget(span)

    def _balance(self) -> None:
        """Scale stages as the policy says, on what was measured."""
        now_s = time.monotonic()
        self._count_idle(now_s)
        if now_s - self._balanced_s < BALANCE_S or now_s - self._scaled_s < STALE_S:
            return
        self._balanced_s = now_s
        if any(stage.num_starting for stage in self._stages) and now_s - self._scaled_s < MAX_BUILD_S:
            return
        loads = [self._load(place) for place in range(len(self._stages))]
        held = [(member.node_id, load.needs) for load, stage in zip(loads, self._stages, strict=True) for member in stage.members]
        start_s = max(stage.start_s for stage in self._stages)
        for decision in decide(loads, free_nodes(held), rows_left=self._rows_left(), start_s=start_s):
            self._scaled_s = now_s
            self._context.emit(
                Decided(decision="Scale", about=(decision.stage, str(decision.num_replicas)), reason=decision.reason)
            )
            next(stage for stage in self._stages if stage.spec.name == decision.stage).scale(decision.num_replicas)

    def _load(self, place: int) -> StageLoad:
        spec, cost_s = self._specs[place], self._cost(place)
        is_early = time.monotonic() - self._begun_s < MAX_AWAITED_S
        return StageLoad(
            stage=spec.name,
            needs=Resources(num_cpus=spec.num_cpus, num_gpus=spec.num_gpus, memory_bytes=spec.memory_bytes),
            num_replicas=self._stages[place].num_alive,
            min_replicas=spec.min_replicas,
            max_replicas=spec.max_replicas,
            work_s=None if cost_s is None else cost_s * self._ratio(place),
            is_over=self._source.is_over and self._flow.is_over(place),
            is_awaited=cost_s is None and is_early and (self._stages[place].has_calls or self._flow.rows_waiting(place) > 0),
        )

    def _ratio(self, place: int) -> float:
        """Give the rows that come to a stage for each of the source's."""
        return math.prod(rows_out / rows_in for rows_in, rows_out in self._passed[:place] if rows_in)

    def _rows_left(self) -> float:
        """Give the source rows that are not through the last stage, infinite where the source's length is unknown."""
        total = self._source.num_rows
        last = len(self._stages) - 1
        return math.inf if total is None else max(0.0, total - self._passed[last][0] / max(self._ratio(last), 1e-9))

    def _count_idle(self, now_s: float) -> None:
        passed_s, self._looked_s = now_s - (self._looked_s or now_s), now_s
        for place, stage in enumerate(self._stages):
            self._spent_s[place][self._waited[place] if stage.has_idle else "busy"] += passed_s

    def _sample(self, *, now: bool = False) -> None:
        now_s = time.monotonic()
        if now_s - self._sampled_s < SAMPLE_S and not now:
            return
        self._sampled_s = now_s
        for place, (stage, word) in enumerate(zip(self._stages, self._words(), strict=True)):
            name = stage.spec.name
            sample = StageSampled(
                stage=name,
                num_replicas=stage.num_alive - stage.num_starting,
                rows_waiting=self._flow.rows_waiting(place),
                rows_in=self._total(self._sink.rows_in, self._rows_in, name),
                rows_out=self._total(self._sink.rows_out, self._rows_out, name),
                num_bad=self._num_bad(name),
                word=word,
            )
            self._context.emit(sample)

    def _words(self) -> Sequence[StageWord | Literal[""]]:
        times = []
        for place, spent_s in enumerate(self._spent_s):
            whole_s = sum(spent_s.values()) or 1.0
            busy, starved, blocked = (spent_s[why] / whole_s for why in SPENT)
            has_waiting = self._flow.rows_waiting(place) > 0
            times.append(StageTimes(busy=busy, starved=starved, blocked=blocked, has_waiting=has_waiting))
            self._spent_s[place] = {why: seconds * LATE for why, seconds in spent_s.items()}
        is_known = all(self._cost(place) is not None for place in range(len(self._specs)))
        return words(times) if is_known else [""] * len(times)

    def _num_bad(self, name: str) -> int:
        return self._sink.num_bad[name] + sum(row["stage"] == name for rows in self._bad.values() for row in rows)

    @staticmethod
    def _total(written: Counter[str], under_way: dict[int, Counter[str]], name: str) -> int:
        return written[name] + sum(counts[name] for counts in under_way.values())

    def _publish(self) -> None:
        """Let the parts appear where they belong."""
        target = self._spec.output_path or str(self._context.folder / "parts")
        size = sum(part.stat().st_size for part in self._sink.parts.iterdir())
        publish(self._sink.parts, target, prefix=f"{self._context.name.replace('#', '-')}-" if self._spec.output_path else "")
        self._context.emit(OutputReady(name=next(iter(self._spec.outputs), "rows"), file=target, num_bytes=size))
