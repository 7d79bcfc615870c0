"""A replica of a stage: the user's function or class, called and counted in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import ray

from raykit.engine.folder import RunFolder
from raykit.engine.pipeline.blocks import (
    Batch,
    Part,
    Rows,
    array_of,
    batch_of,
    bytes_of,
    is_tensor,
    num_rows,
    rows_of,
    slice_of,
    stacked,
    table_of,
)
from raykit.engine.pipeline.calls import BadRow, Facts, Order, Position, Ready, Report, Waited, Way
from raykit.engine.pipeline.costs import CostOf, reach, weighed
from raykit.engine.pipeline.usage import Usage
from raykit.engine.reporter import Reporter, captured
from raykit.engine.run import describe
from raykit.engine.threads import limit_threads
from raykit.events import BatchHalved, ReplicaSampled, ReplicaStarted
from raykit.spec import StageSpec

MAX_BLOCK_BYTES = 16_000_000


class StageWorker:
    """What runs in the actor of a replica."""

    def __init__(self, host: Any, folder: RunFolder, spec: StageSpec, replica: str, *, is_last: bool) -> None:
        self._spec, self._replica, self._is_last = spec, replica, is_last
        self._position: Position | None = None
        self._reporter = Reporter(host, replica, folder, pulse=lambda: self._position).start()
        self._payload = replace(folder.payload(), extras={})  # the source is not for it
        self._count, self._usage = _Count(), Usage()
        self._num_calls = 0
        self._most_rows = sys.maxsize  # of a batch that fits the GPU, once one did not
        self._bad: list[BadRow] = []
        self._failure: Facts | None = None
        begun_s = time.monotonic()
        self._printing = captured(self._reporter)  # ends with the process: what is not kept would end at once
        self._printing.__enter__()
        try:
            limit_threads(spec.num_threads or spec.num_cpus)
            work = self._find()
            self._on_error: Callable[..., Any] | None = getattr(work, "__raykit_on_error__", None)
            self._cost: CostOf | str | None = getattr(work, "__raykit_cost__", None)
            self._call: Any = work() if inspect.isclass(work) else work
            limit_threads(spec.num_threads or spec.num_cpus)  # once more: the user's imports brought their own thread pools
        except Exception as exc:
            self._failure = self._facts(exc)
            return
        method = self._call if inspect.isroutine(self._call) else type(self._call).__call__
        self._is_async = inspect.iscoroutinefunction(method)
        self._loop = asyncio.new_event_loop() if self._is_async else None
        self._threads: ThreadPoolExecutor | None = None
        self._num_at_once = 1
        self._start_s = time.monotonic() - begun_s
        self._ended_s = time.monotonic()
        node = ray.get_runtime_context().get_node_id()
        self._reporter.emit(ReplicaStarted(stage=spec.name, replica=replica, pid=os.getpid(), node=node[:8], start_s=self._start_s))

    def ready(self) -> Ready:
        """Say where it is, when it is built."""
        node_id = ray.get_runtime_context().get_node_id()
        if self._failure is not None:
            self._reporter.close()
            return Ready(node_id=node_id, pid=os.getpid(), failure=self._failure)
        return Ready(node_id=node_id, pid=os.getpid(), start_s=self._start_s, is_async=self._is_async)

    def run(self, order: Order, *blocks: Any) -> Iterator[Any]:
        """Give the blocks that the user's code makes of rows, and a :class:`Report` last."""
        begun_s = time.monotonic()
        self._count.wait(order.waited, begun_s - self._ended_s)
        self._bad, failure, given = [], None, []
        self._prepare(order.way)
        self._usage.begin()
        parts = [(block, *cut) for block, cut in zip(blocks, order.cuts, strict=True)]
        try:
            for made in self._blocks(order, parts):
                block = table_of(made) if self._is_last else made  # here, where it costs the host nothing
                given.append((num_rows(block), bytes_of(block)))
                yield block
        except Exception as exc:
            failure = self._facts(exc)
        self._position = None
        rows_in = sum(stop - start for start, stop in order.cuts)
        self._ended_s = time.monotonic()
        self._count.add(rows_in, sum(rows for rows, _ in given))
        self._num_calls += 1
        self._reporter.sample("counts", self._count.event(self._spec.name, self._replica))
        if failure is not None:
            sys.stdout.flush()
            self._reporter.flush()
        yield Report(
            blocks=tuple(given),
            rows_in=rows_in,
            taken_s=self._ended_s - begun_s,
            is_warm=self._num_calls > 1,
            use=self._usage.end(),
            bad=tuple(self._bad),
            failure=failure,
        )

    def _prepare(self, way: Way) -> None:
        """Be ready to call the user's code so."""
        self._way = way
        if way.num_threads is not None:
            limit_threads(way.num_threads)
        if way.concurrency != self._num_at_once:
            self._num_at_once = way.concurrency
            self._threads = ThreadPoolExecutor(way.concurrency) if way.concurrency > 1 and not self._is_async else None

    def _blocks(self, order: Order, parts: list[Part]) -> Iterator[Any]:
        if self._spec.batch_size is None:
            rows = rows_of(parts)
            yield from _packed(self._rows(self._one_by_one(order, rows) if order.careful else rows))
        elif order.careful:
            for row in self._one_by_one(order, rows_of(parts)):
                yield from self._timed(batch_of([([row], 0, 1)]))
        else:
            yield from self._batches(batch_of(parts))

    def _batches(self, batch: Batch) -> Iterator[Batch]:
        """Call the batch form: with so many rows, or with as many as the stage's limit of cost allows."""
        costs = None
        if self._cost is not None:
            batch, costs, unknown = weighed(batch, self._cost)
            for row, error in unknown:
                yield from map(as_batch, self._answered(row, error))
        at = 0
        while at < num_rows(batch):
            most = min(self._way.batch_size or 1, self._most_rows)
            stop = at + most if costs is None else reach(costs, at, most=most, max_cost=self._spec.max_cost or 0.0)
            yield from self._timed(slice_of(batch, at, stop))
            at = stop

    def _one_by_one(self, order: Order, rows: Rows) -> Iterator[dict[str, Any]]:
        """Give the rows that are not known as bad, and tell the host of each before it is given."""
        for at, row in enumerate(rows):
            if at not in order.bad:
                self._position = Position(number=order.number, row=at)
                self._reporter.flush()
                yield row

    def _rows(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Call the row form; several at once where the stage allows it, their order kept."""
        begun_s = time.perf_counter()
        if self._loop is not None and isinstance(rows, list):
            made = iter(self._loop.run_until_complete(self._gathered(rows)))
        elif self._threads is not None and isinstance(rows, list):
            made = self._threads.map(self._guarded, rows)
        else:
            made = map(self._guarded, rows)
        for results in made:
            self._count.busy_s += time.perf_counter() - begun_s
            yield from (_as_row(each) for each in results)
            begun_s = time.perf_counter()
        self._count.busy_s += time.perf_counter() - begun_s

    async def _gathered(self, rows: list[dict[str, Any]]) -> list[list[Any]]:
        gate = asyncio.Semaphore(self._way.concurrency)

        async def one(row: dict[str, Any]) -> list[Any]:
            async with gate:
                for left in reversed(range(1 + self._spec.num_retries)):
                    try:
                        made = await self._call(row)
                    except Exception as exc:
                        if not left:
                            return self._answered(row, exc)
                    else:
                        return [] if made is None else [made]
                raise AssertionError("a call ends or raises")

        return await asyncio.gather(*map(one, rows))

    def _timed(self, batch: Batch) -> list[Batch]:
        begun_s = time.perf_counter()
        try:
            return [as_batch(each) for each in self._batch(batch) if not (isinstance(each, list) and not each)]
        finally:
            self._count.busy_s += time.perf_counter() - begun_s

    def _batch(self, batch: Batch) -> list[Any]:
        """Call the batch form; a batch that fails, or does not fit the GPU, is halved where that can help."""
        rows = num_rows(batch)
        try:
            return self._tried(batch)
        except Exception as exc:
            halves = slice_of(batch, 0, rows // 2), slice_of(batch, rows // 2, rows)
            if _is_out_of_memory(exc) and rows > 1:
                self._most_rows = max(1, rows // 2)
                self._reporter.emit(BatchHalved(stage=self._spec.name, replica=self._replica, num_rows=self._most_rows))
                return [*self._batch(halves[0]), *self._batch(halves[1])]
            if self._spec.on_error == "quarantine" and rows > 1:
                return [*self._batch(halves[0]), *self._batch(halves[1])]
            return self._answered(batch, exc)

    def _guarded(self, row: dict[str, Any]) -> list[Any]:
        try:
            return self._tried(row)
        except Exception as exc:
            return self._answered(row, exc)

    def _tried(self, item: Any) -> list[Any]:
        """Call the user's code, as often as it may be tried, and give its results."""
        for left in reversed(range(1 + self._spec.num_retries)):
            try:
                made = self._loop.run_until_complete(self._call(item)) if self._loop is not None else self._call(item)
                return [each for each in made if each is not None] if inspect.isgenerator(made) else [] if made is None else [made]
            except Exception:
                if not left:
                    raise
        raise AssertionError("a call ends or raises")

    def _answered(self, item: Any, error: Exception) -> list[Any]:
        """Do what the stage wants when user code raised: stand in for the result, put the row aside, or fail."""
        if self._on_error is not None:
            made = self._on_error(item, error)
            return [] if made is None else [made]
        if self._spec.on_error != "quarantine":
            raise error
        row = item if self._spec.batch_size is None else rows_of([(item, 0, 1)])[0]
        _, said, frames = self._facts(error)
        self._bad.append(BadRow(row=_pickled(row), error=said, traceback_text=frames))
        return []

    def _find(self) -> Any:
        stages: Sequence[Any] = self._payload.open()
        return next(each for each in stages if self._is_mine(each))

    def _is_mine(self, work: Any) -> bool:
        marked: StageSpec | None = getattr(work, "__raykit_stage__", None)
        return (marked.name if marked else getattr(work, "__name__", "stage")) == self._spec.name

    def _facts(self, error: Exception) -> Facts:
        return self._spec.name, describe(error), self._payload.traceback_of(error)


@dataclass(slots=True)
class _Count:
    """Totals of one replica: time in user code, time without input, time in which nobody took its output."""

    rows_in: int = 0
    rows_out: int = 0
    busy_s: float = 0.0
    waits_s: dict[str, float] = field(default_factory=lambda: {"starved": 0.0, "blocked": 0.0})

    def wait(self, why: Waited, passed_s: float) -> None:
        self.waits_s[why] += passed_s

    def add(self, rows_in: int, rows_out: int) -> None:
        self.rows_in, self.rows_out = self.rows_in + rows_in, self.rows_out + rows_out

    def event(self, stage: str, replica: str) -> ReplicaSampled:
        return ReplicaSampled(
            stage=stage,
            replica=replica,
            rows_in=self.rows_in,
            rows_out=self.rows_out,
            busy_s=self.busy_s,
            starved_s=self.waits_s["starved"],
            blocked_s=self.waits_s["blocked"],
        )


def _as_row(made: Any) -> dict[str, Any]:
    """Give what a row stage returned as a row that any process can read: its tensors leave the GPU."""
    row = made if isinstance(made, dict) else {"item": made}
    return {name: value.cpu() if getattr(value, "is_cuda", False) else value for name, value in row.items()}


def as_batch(made: Any) -> Batch:
    """Give what a batch stage returned as a dict of arrays of one length: a dict of columns, a table, or a list of rows.

    Raises:
        TypeError: it is none of them, or a column is one value.
        ValueError: its columns are of unlike lengths.
    """
    if hasattr(made, "to_dict") and hasattr(made, "columns"):
        return {name: made[name].to_numpy() for name in made.columns}
    is_table = hasattr(made, "column_names") and hasattr(made, "num_rows")  # of Arrow
    if is_table or (isinstance(made, list) and made and all(isinstance(each, dict) for each in made)):
        return batch_of([(made, 0, num_rows(made))])
    if not isinstance(made, dict):
        raise TypeError(f"a stage with batch= returns a dict of arrays, not a {type(made).__name__}")
    batch = {name: _as_array(name, column) for name, column in made.items()}
    lengths = {name: len(column) for name, column in batch.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the columns of a batch have unlike lengths: {lengths}")
    return batch


def _as_array(name: str, column: Any) -> Any:
    array = array_of(column) if is_tensor(column) else column
    if isinstance(array, dict | str | bytes) or not isinstance(array, Iterable) or getattr(array, "ndim", 1) == 0:
        raise TypeError(f"the column {name} of a batch is one {type(column).__name__}, not an array or a list with a value a row")
    if isinstance(array, np.ndarray):
        return array
    values = list(array)
    return stacked(values) if values else np.empty(0)


def _packed(results: Iterator[Any]) -> Iterator[Any]:
    """Put rows together to blocks of up to ``MAX_BLOCK_BYTES``."""
    rows: list[dict[str, Any]] = []
    size = 0
    for result in results:
        rows.append(result)
        size += bytes_of(result)
        if size > MAX_BLOCK_BYTES:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows


def _is_out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(error, torch.cuda.OutOfMemoryError):
        return False
    torch.cuda.empty_cache()
    return True


def _pickled(row: Any) -> bytes:
    """Pickle a row that is put aside; of one that does not pickle keep what its values look like."""
    with contextlib.suppress(Exception):
        return pickle.dumps(row)
    return pickle.dumps({name: repr(value) for name, value in row.items()})
