"""Failures on purpose, of a pipeline: a replica at work is killed, and its rows are waited for."""

from __future__ import annotations

import time
from collections.abc import Sequence

import ray

from raykit.commands import Drill
from raykit.engine.pipeline.flow import Piece, Work
from raykit.engine.pipeline.replicas import Replicas
from raykit.engine.run import RunContext
from raykit.events import DrillEnded, DrillStarted


class Drills:
    """The drills of one run, one at a time."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._waiting: list[tuple[float, Drill]] = []
        self._begun_s = 0.0
        self._awaited: set[tuple[Piece, ...]] = set()
        self._num_rows = 0

    def add(self, drill: Drill) -> None:
        """Keep a drill until its time has come."""
        self._waiting.append((time.monotonic() + drill.after_s, drill))

    def strike(self, stages: Sequence[Replicas]) -> None:
        """Kill a replica of the stage that has most calls, if a drill is due."""
        if self._awaited or not self._waiting or time.monotonic() < self._waiting[0][0]:
            return
        at_work = [(len(member.calls), member) for stage in stages for member in stage.members if member.calls]
        if not at_work:
            return  # replicas are being built, or wait for rows: a moment later there will be one
        self._waiting.pop(0)
        member = max(at_work, key=lambda each: each[0])[1]
        self._begun_s, self._awaited = time.monotonic(), {call.work.pieces for call in member.calls}
        self._num_rows = sum(call.work.num_rows for call in member.calls)
        self._context.emit(DrillStarted(action="kill-worker", target=member.name, pid=member.pid))
        ray.kill(member.handle)

    def done(self, work: Work) -> None:
        """Know that a call is over; of one that was struck the verdict follows."""
        if work.pieces not in self._awaited:
            return
        self._awaited.discard(work.pieces)
        if not self._awaited:
            passed_s = time.monotonic() - self._begun_s
            verdict = f"its {self._num_rows:,} rows were taken again by others, all of them after {passed_s:.2f} s"
            self._context.emit(DrillEnded(action="kill-worker", passed=True, verdict=verdict))

    def end(self) -> None:
        """Say of a drill that was not carried out, or whose rows did not come, that it failed."""
        late = ["the run ended before the drill began"] * len(self._waiting)
        for verdict in late + ["the run ended before its rows were taken again"] * bool(self._awaited):
            self._context.emit(DrillEnded(action="kill-worker", passed=False, verdict=verdict))
