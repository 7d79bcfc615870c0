"""Advice for the person who watches a pipeline: said when it changes, carried out when asked, and measured after."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from raykit.decisions import Advise, StageChange, Try
from raykit.engine.pipeline.meter import Meter
from raykit.engine.pipeline.trials import Trials
from raykit.engine.run import RunContext
from raykit.errors import RunError
from raykit.events import AdviceApplied, AdviceMeasured, AdviceWithdrawn, Advised
from raykit.policy.advice import Limit, StageUse, advise
from raykit.policy.balance import Resources
from raykit.spec import StageSpec

LOOK_S = 1.0
LOOKS_BACK = 8
MEASURE_S = 10.0
ALIKE = 0.15  # gains that differ by less are not said again


class Adviser:
    """Keeps the newest advice of a run, and the changes that came of those which were applied."""

    def __init__(self, context: RunContext, meter: Meter, trials: Trials, applied: Sequence[StageChange]) -> None:
        """Take up what was applied under an earlier host."""
        self._context, self._meter, self._trials = context, meter, trials
        self._changes: dict[str, dict[str, Any]] = {}
        self._newest: Advise | None = None
        self._looks: deque[tuple[float, float]] = deque(maxlen=LOOKS_BACK)
        self._measured_from: tuple[float, float] | None = None
        self._asked: Sequence[StageChange] = ()
        self._is_applied = False
        self._take(applied)

    def changed(self, spec: StageSpec) -> StageSpec:
        """Give a stage of the user's as it is to work now."""
        return replace(spec, **self._changes.get(spec.name, {}))

    def look(self, stages: Sequence[StageUse], nodes: Sequence[Resources], *, limit: Limit | None, now_s: float) -> None:
        """Say what is new, or have something tried, while the balance is at rest."""
        through = self._meter.source_rows_through()
        if self._is_applied:
            if all(stage.load.work_s is not None for stage in stages):  # else the balance has still to follow the change
                self._measure(now_s, through)
            return
        if self._asked or self._trials.is_trying or (self._looks and now_s - self._looks[-1][0] < LOOK_S):
            return
        self._looks.append((now_s, through))
        begun_s, before = self._looks[0]
        rows_s = (through - before) / (now_s - begun_s) if now_s > begun_s else 0.0
        if limit is not None and len(self._looks) < LOOKS_BACK:
            return  # a pipeline that begins waits for its source as well
        known = self._trials.known({stage.load.stage: stage.load.work_s for stage in stages})
        newest = advise(stages, nodes, tried=known, rows_s=rows_s, limit=limit)
        if isinstance(newest, Try):
            self._try(newest, stages)
        else:
            self._say(newest)

    def apply(self) -> None:
        """Ask for the newest advice's changes, from any thread; they are taken up by :meth:`take_up`.

        Raises:
            RunError: there is none that can be carried out.
        """
        if self._newest is None or not self._newest.changes or self._asked or self._is_applied:
            said = f": {self._newest.reason}" if self._newest else "."
            raise RunError(f"{self._context.name} has no advice that could be applied{said}", "See %ray advise.")
        self._asked = self._newest.changes
        self._context.emit(AdviceApplied())

    def take_up(self) -> None:
        """Have what was asked for count from now on: what is measured is what comes of it."""
        if self._asked:
            self._take(self._asked)
            self._asked, self._is_applied = (), True

    def moved(self) -> None:
        """Know that the pipeline follows a change, and is not at rest."""
        self._measured_from = None

    def _take(self, changes: Sequence[StageChange]) -> None:
        for change in changes:
            self._changes[change.stage] = self._changes.get(change.stage, {}) | change.fields

    def _try(self, wish: Try, stages: Sequence[StageUse]) -> None:
        place = next(place for place, stage in enumerate(stages) if stage.load.stage == wish.change.stage)
        row_s = self._meter.row_s(place)
        if row_s is not None:
            self._trials.begin(wish.change, row_s)

    def _say(self, newest: Advise | None) -> None:
        before = self._newest
        if newest is not None and before is not None and _is_like(newest, before):
            return
        self._newest = newest
        if newest is not None:
            self._context.emit(
                Advised(
                    changes=newest.changes,
                    rows_s=newest.rows_s,
                    expected_rows_s=newest.expected_rows_s,
                    reason=newest.reason,
                )
            )
        elif before is not None:
            self._context.emit(AdviceWithdrawn())

    def _measure(self, now_s: float, through: float) -> None:
        """Measure the rate from the first look after the change was carried out."""
        if self._measured_from is None:
            self._measured_from = now_s, through
        begun_s, before = self._measured_from
        if now_s - begun_s > MEASURE_S:
            self._context.emit(AdviceMeasured(rows_s=(through - before) / (now_s - begun_s)))
            self._measured_from, self._is_applied, self._newest = None, False, None
            self._looks.clear()


def _is_like(one: Advise, other: Advise) -> bool:
    """Say whether two pieces of advice are one: the same changes for about the same gain."""
    gains = [each.expected_rows_s / each.rows_s if each.rows_s else 0.0 for each in (one, other)]
    is_same = one.changes == other.changes and (bool(one.changes) or one.reason == other.reason)
    return is_same and abs(gains[0] - gains[1]) <= ALIKE * max(gains)
