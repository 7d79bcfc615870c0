"""A replica of a stage: the user's function or class, called and counted in a process of its own."""

from __future__ import annotations

import inspect
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import ray
import ray.cloudpickle

from raykit.engine.folder import RunFolder
from raykit.engine.pipeline.blocks import Part, Rows, batch_of, bytes_of, num_rows, rows_of, table_of
from raykit.engine.pipeline.calls import Facts, Order, Position, Ready, Report, Waited
from raykit.engine.pipeline.row_order import Origins
from raykit.engine.pipeline.usage import Usage
from raykit.engine.pipeline.user_call import CallFailedError, Numbered, UserCall
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
        self._failure: Facts | None = None
        begun_s = time.monotonic()
        self._printing = captured(self._reporter)  # ends with the process: what is not kept would end at once
        self._printing.__enter__()
        try:
            limit_threads(spec.num_threads or spec.num_cpus)
            work = self._find()
            function: Any = work() if inspect.isclass(work) else work
            self._call = UserCall(
                function,
                spec,
                self._payload,
                on_error=getattr(work, "__raykit_on_error__", None),
                cost=getattr(work, "__raykit_cost__", None),
                halved=self._halved,
            )
            limit_threads(spec.num_threads or spec.num_cpus)  # once more: the user's imports brought their own thread pools
        except BaseException as exc:  # SystemExit too, which would end the actor without a word
            self._failure = spec.name, describe(exc), self._payload.traceback_of(exc)
            return
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
        return Ready(node_id=node_id, pid=os.getpid(), start_s=self._start_s, is_async=self._call.is_async)

    def run(self, order: Order, *blocks: Any) -> Iterator[Any]:
        """Give the blocks that the user's code makes of rows, and a :class:`Report` last."""
        begun_s = time.monotonic()
        self._count.wait(order.waited, begun_s - self._ended_s)
        failure, given, origins, is_unsendable = None, [], [], False
        self._prepare(order)
        self._usage.begin()
        parts = [(block, *cut) for block, cut in zip(blocks, order.cuts, strict=True)]
        try:
            for made, its_origins in self._blocks(order, parts):
                try:
                    block = table_of(made) if self._is_last else made  # here, where it costs the host nothing
                except Exception:
                    if order.checked:
                        raise
                    is_unsendable = True  # of which row it was made, a call that checks each of them will tell
                    break
                given.append((num_rows(block), bytes_of(block)))
                origins.append(its_origins)
                yield block
        except CallFailedError as exc:
            failure = self._spec.name, *exc.args
        except Exception as exc:
            failure = self._spec.name, describe(exc), self._payload.traceback_of(exc)
        self._position = None
        rows_in = sum(stop - start for start, stop in order.cuts)
        self._ended_s = time.monotonic()
        self._count.busy_s = self._call.busy_s
        self._count.add(rows_in, sum(rows for rows, _ in given))
        self._num_calls += 1
        self._reporter.sample("counts", self._count.event(self._spec.name, self._replica))
        if failure is not None:
            sys.stdout.flush()
            self._reporter.flush()
        yield Report(
            blocks=tuple(given),
            origins=_origins_of(origins, rows_in),
            rows_in=rows_in,
            taken_s=self._ended_s - begun_s,
            is_warm=self._num_calls > 1,
            use=self._usage.end(),
            bad=tuple(self._call.bad),
            failure=failure,
            is_guess=self._call.is_guess,
            is_unsendable=is_unsendable,
        )

    def _prepare(self, order: Order) -> None:
        """Be ready to call the user's code as the order says."""
        if order.way.num_threads is not None:
            limit_threads(order.way.num_threads)
        check = table_of if self._is_last else ray.cloudpickle.dumps
        self._call.prepare(order.way, check if order.checked else None)

    def _blocks(self, order: Order, parts: list[Part]) -> Iterator[tuple[Any, Origins]]:
        is_slow = order.careful or order.checked
        rows = list(enumerate(rows_of(parts))) if is_slow or self._spec.batch_size is None else []
        if self._spec.batch_size is None:
            yield from _packed(self._call.rows(self._one_by_one(order, rows) if order.careful else rows))
        elif is_slow:
            for number, row in self._one_by_one(order, rows):
                yield from self._call.one_batch(number, row)
        else:
            yield from self._call.batches(batch_of(parts))

    def _one_by_one(self, order: Order, rows: Iterable[Numbered]) -> Iterator[Numbered]:
        """Give the rows that are not known as bad; of a careful order tell the host of each before it is given."""
        for at, row in rows:
            if at not in order.bad:
                if order.careful:
                    self._position = Position(number=order.number, row=at)
                    self._reporter.flush()
                yield at, row

    def _halved(self, num_rows: int) -> None:
        self._reporter.emit(BatchHalved(stage=self._spec.name, replica=self._replica, num_rows=num_rows))

    def _find(self) -> Any:
        stages: Sequence[Any] = self._payload.open()
        return next(each for each in stages if self._is_mine(each))

    def _is_mine(self, work: Any) -> bool:
        marked: StageSpec | None = getattr(work, "__raykit_stage__", None)
        return (marked.name if marked else getattr(work, "__name__", "stage")) == self._spec.name


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


def _packed(results: Iterator[Numbered]) -> Iterator[tuple[Rows, Origins]]:
    """Put rows together to blocks of up to ``MAX_BLOCK_BYTES``."""
    rows: Rows = []
    numbers: list[int] = []
    size = 0
    for number, row in results:
        rows.append(row)
        numbers.append(number)
        size += bytes_of(row)
        if size > MAX_BLOCK_BYTES:
            yield rows, np.array(numbers)
            rows, numbers, size = [], [], 0
    if rows:
        yield rows, np.array(numbers)


def _origins_of(origins: Sequence[Origins], rows_in: int) -> Origins | None:
    """Return the origins of all rows of a call; None where they are the rows of the call, one for one."""
    whole = np.concatenate([np.empty(0, dtype=np.int32), *origins]).astype(np.int32)
    return None if np.array_equal(whole, np.arange(rows_in)) else whole
