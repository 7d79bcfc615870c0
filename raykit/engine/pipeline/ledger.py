"""The rows of the spans under way, by stage: in, out, and put aside. What is written is in the sink's own account."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from raykit.engine.pipeline.calls import BadRow, Report
from raykit.engine.pipeline.row_order import Keys
from raykit.engine.pipeline.sink import Sink, SpanResult


class Ledger:
    """Spans leave it when they are written, or begun anew."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._rows_in: defaultdict[int, Counter[str]] = defaultdict(Counter)
        self._rows_out: defaultdict[int, Counter[str]] = defaultdict(Counter)
        self._bad: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)

    def add(self, span: int, stage: str, report: Report) -> None:
        """Count a call."""
        self._rows_in[span][stage] += report.rows_in
        self._rows_out[span][stage] += report.rows_out

    def put_aside(self, span: int, stage: str, rows: Sequence[BadRow]) -> None:
        """Take rows for the quarantine."""
        self._bad[span] += [{"stage": stage, "error": bad.error, "traceback": bad.traceback_text, "row": bad.row} for bad in rows]

    def result(self, span: int, tables: Sequence[Any], keys: Keys) -> SpanResult:
        """Return all that became of a span: its rows in ``tables``, and the keys of their order."""
        rows_in, rows_out = self._rows_in[span], self._rows_out[span]
        return SpanResult(span=span, tables=tables, keys=keys, bad=self._bad[span], rows_in=rows_in, rows_out=rows_out)

    def forget(self, span: int) -> None:
        for each in (self._rows_in, self._rows_out, self._bad):
            each.pop(span, None)

    def totals(self, stage: str) -> tuple[int, int, int]:
        """Give a stage's rows in, out and put aside, with what is written."""
        return (
            self._sink.rows_in[stage] + sum(counts[stage] for counts in self._rows_in.values()),
            self._sink.rows_out[stage] + sum(counts[stage] for counts in self._rows_out.values()),
            self._sink.num_bad[stage] + sum(row["stage"] == stage for rows in self._bad.values() for row in rows),
        )
