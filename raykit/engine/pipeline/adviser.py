"""Advice for the person who watches a pipeline: said when it changes, carried out when asked, and measured after."""

from __future__ import annotations

import time
from collections.abc import Sequence

from raykit.decisions import Advise
from raykit.engine.pipeline.meter import Meter
from raykit.engine.run import RunContext
from raykit.errors import RunError
from raykit.events import AdviceApplied, AdviceMeasured, AdviceWithdrawn, Advised
from raykit.policy.advice import advise
from raykit.policy.balance import Resources, StageLoad

LOOK_S = 2.0
MEASURE_S = 10.0


class Adviser:
    """Keeps the newest advice of a run, and the limits that came of those which were applied."""

    def __init__(self, context: RunContext, meter: Meter) -> None:
        self._context, self._meter = context, meter
        self.limits: dict[str, tuple[int, int]] = {}
        self._newest: Advise | None = None
        self._looked_s = 0.0
        self._measured_from: tuple[float, float] | None = None
        self._is_applied = False

    def look(self, loads: Sequence[StageLoad], nodes: Sequence[Resources], *, is_source_slow: bool) -> None:
        """Say what is new, while the balance is at rest."""
        now_s = time.monotonic()
        if self._is_applied:
            self._measure(now_s)
            return
        if now_s - self._looked_s < LOOK_S:
            return
        self._looked_s = now_s
        newest = advise(loads, nodes, is_source_slow=is_source_slow)
        before, self._newest = self._newest, newest
        if newest is None and before is not None:
            self._context.emit(AdviceWithdrawn())
        elif newest is not None and (before is None or (newest.changes, newest.reason) != (before.changes, before.reason)):
            self._context.emit(
                Advised(
                    changes=newest.changes,
                    rows_s=newest.rows_s,
                    expected_rows_s=newest.expected_rows_s,
                    reason=newest.reason,
                )
            )

    def apply(self) -> None:
        """Take the newest advice's limits.

        Raises:
            RunError: there is none that can be carried out.
        """
        if self._newest is None or not self._newest.changes or self._is_applied:
            said = f": {self._newest.reason}" if self._newest else "."
            raise RunError(f"{self._context.name} has no advice that could be applied{said}", "See %ray advise.")
        self.limits |= {each.stage: (each.min_replicas, each.max_replicas) for each in self._newest.changes}
        self._is_applied = True
        self._context.emit(AdviceApplied())

    def _measure(self, now_s: float) -> None:
        """Measure the rate from the first look after the change was carried out."""
        through = self._meter.source_rows_through()
        if self._measured_from is None:
            self._measured_from = now_s, through
        begun_s, before = self._measured_from
        if now_s - begun_s > MEASURE_S:
            self._context.emit(AdviceMeasured(rows_s=(through - before) / (now_s - begun_s)))
            self._measured_from, self._is_applied, self._newest = None, False, None
