"""Where a pipeline's rows go: Parquet parts in a draft folder, each committed with the spans of the source that it holds.

A commit is one small file that appears in one move; what has no commit is not there. A host that comes back reads the
commits, removes the rest and leaves out the spans that are written. All parts appear in their place when the run is over.

Spans are committed as they are through. The rows of a part are in the order of the source, and its metadata says which rows
they are (:data:`ORDER`), so that a reader can put all parts in order.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from raykit.engine.pipeline.blocks import joined
from raykit.engine.pipeline.row_order import Keys
from raykit.spec.rows import ORDER

PART_BYTES = 128_000_000
COMMIT_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanResult:
    """All that became of a span.

    Its tables with the keys of their rows' order, its quarantined rows as a table's columns, and the rows that stages saw.
    """

    span: int
    tables: Sequence[Any]
    keys: Keys
    bad: Sequence[dict[str, Any]] = ()
    rows_in: dict[str, int] = field(default_factory=dict)
    rows_out: dict[str, int] = field(default_factory=dict)


class Sink:
    """The draft of a run's rows, in ``folder``."""

    def __init__(self, folder: Path) -> None:
        """Take up what is there."""
        self.parts, self._bad, self._commits = folder / "draft", folder / "quarantine", folder / "commits"
        for each in (self.parts, self._bad, self._commits):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.spans: set[int] = set()
        self.rows_in: Counter[str] = Counter()
        self.rows_out: Counter[str] = Counter()
        self.num_bad: Counter[str] = Counter()
        kept = set()
        for file in sorted(self._commits.glob("*.json")):
            commit = json.loads(file.read_text())
            self.spans.update(commit["spans"])
            self._count(commit["rows_in"], commit["rows_out"], commit["num_bad"])
            kept.add(file.stem)
        for file in [*self.parts.glob("*.parquet"), *self._bad.glob("*.parquet"), *self._commits.glob("*.new")]:
            if file.stem.partition("-")[0] not in kept:
                file.unlink()
        self._number = 1 + max((int(stem) for stem in kept), default=-1)
        self._pending: list[SpanResult] = []
        self._pending_bytes = 0
        self._committed_s = time.monotonic()

    def add(self, result: SpanResult) -> None:
        """Take a span that is through; it is there after the next ``commit``."""
        self._pending.append(result)
        self._pending_bytes += sum(table.nbytes for table in result.tables)

    @property
    def is_due(self) -> bool:
        """Whether what waits should be committed."""
        return bool(self._pending) and (self._pending_bytes > PART_BYTES or time.monotonic() - self._committed_s > COMMIT_S)

    def commit(self) -> list[int]:
        """Write what waits, all or nothing, and give its spans."""
        self._committed_s = time.monotonic()
        if not self._pending:
            return []
        stem = f"{self._number:05d}"
        bad = [row for result in self._pending for row in result.bad]
        _write(_in_order(self._pending), self.parts / f"{stem}.parquet")
        if bad:
            import pyarrow as pa

            _write(pa.Table.from_pylist(bad), self._bad / f"{stem}.parquet")
        rows_in, rows_out = Counter[str](), Counter[str]()
        for result in self._pending:
            rows_in.update(result.rows_in)
            rows_out.update(result.rows_out)
        num_bad = Counter(str(row["stage"]) for row in bad)
        spans = [result.span for result in self._pending]
        commit = {"spans": spans, "rows_in": rows_in, "rows_out": rows_out, "num_bad": num_bad}
        draft = self._commits / f"{stem}.new"
        draft.write_text(json.dumps(commit))
        draft.rename(draft.with_suffix(".json"))
        self.spans.update(spans)
        self._count(rows_in, rows_out, num_bad)
        self._number += 1
        self._pending, self._pending_bytes = [], 0
        return spans

    def _count(self, rows_in: dict[str, int], rows_out: dict[str, int], num_bad: dict[str, int]) -> None:
        self.rows_in.update(rows_in)
        self.rows_out.update(rows_out)
        self.num_bad.update(num_bad)


def _write(table: Any, file: Path) -> None:
    import pyarrow.parquet

    if table is not None:
        pyarrow.parquet.write_table(table, file)


def _in_order(results: Sequence[SpanResult]) -> Any:
    """Return the rows of several spans in the order of the source, as one table that says which they are; None of no rows."""
    pieces, spans = [], []
    for result in sorted(results, key=lambda result: result.span):
        if not len(result.keys):
            continue
        pieces += _sorted(joined([table for table in result.tables if table.num_rows]), result.keys)
        spans.append((result.span, len(result.keys)))
    if not pieces:
        return None
    table = joined(pieces)
    return table.replace_schema_metadata({**(table.schema.metadata or {}), ORDER: json.dumps(spans).encode()})


def _sorted(table: Any, keys: Keys) -> list[Any]:
    """Return rows by rising keys, as slices of a table: not every type of column can be taken row by row."""
    order = np.argsort(keys, kind="stable")
    breaks = np.flatnonzero(np.diff(order) != 1) + 1
    return [table.slice(run[0], len(run)) for run in np.split(order, breaks)]


def publish(draft: Path, target: str, *, prefix: str) -> None:
    """Move the parts of ``draft`` to ``target``, a folder or any URL that fsspec knows; other files there stay."""
    if "://" in target:
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(target)
        filesystem.makedirs(path, exist_ok=True)
        for part in sorted(draft.iterdir()):
            filesystem.put_file(str(part), f"{path}/{prefix}part-{part.name}")
        shutil.rmtree(draft)
        return
    folder = Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    for part in sorted(draft.iterdir()):  # one by one: a host that dies in between goes on with the rest
        shutil.move(part, folder / f"{prefix}part-{part.name}")
    draft.rmdir()
