"""A replica of a service: the user's function or class, called with the requests that are there."""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray

from raykit.engine.folder import RunFolder
from raykit.engine.pipeline.blocks import batch_of, num_rows, rows_of, slice_of
from raykit.engine.pipeline.calls import Ready
from raykit.engine.reporter import Reporter, captured
from raykit.engine.run import describe
from raykit.engine.threads import limit_threads
from raykit.events import ReplicaSampled, ReplicaStarted
from raykit.policy.serving import Calls
from raykit.spec import StageSpec
from raykit.spec.rows import as_json

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a request is answered: JSON, or the error of the user's code."""

    json: str = ""
    error: str = ""


class ServiceReplica:
    """What runs in the actor of a replica."""

    def __init__(self, host: Any, folder: RunFolder, payload: str, spec: StageSpec, name: str) -> None:
        self._spec, self._name, self._calls = spec, name, Calls()
        self._reporter = Reporter(host, name, folder, pulse=lambda: self._calls).start()
        self._payload = folder.payload(payload)
        self._rows_in = self._rows_out = 0
        self._busy_s = self._starved_s = 0.0
        self._failure = None
        begun_s = time.monotonic()
        self._printing = captured(self._reporter)  # ends with the process: what is not kept would end at once
        self._printing.__enter__()
        try:
            limit_threads(spec.num_threads or spec.num_cpus)
            work = self._payload.open()
            self._call: Any = work() if inspect.isclass(work) else work
            limit_threads(spec.num_threads or spec.num_cpus)  # once more: the user's imports brought their own thread pools
        except Exception as exc:
            self._failure = (spec.name, describe(exc), self._payload.traceback_of(exc))
            return
        method = self._call if inspect.isroutine(self._call) else type(self._call).__call__
        self._loop = asyncio.new_event_loop() if inspect.iscoroutinefunction(method) else None
        self._ended_s = time.monotonic()
        node = ray.get_runtime_context().get_node_id()[:8]
        start_s = self._ended_s - begun_s
        self._reporter.emit(ReplicaStarted(stage=spec.name, replica=name, pid=os.getpid(), node=node, start_s=start_s))

    def ready(self) -> Ready:
        """Say where it is, when it is built."""
        node_id = ray.get_runtime_context().get_node_id()
        if self._failure is not None:
            self._reporter.close()
        return Ready(node_id=node_id, pid=os.getpid(), failure=self._failure)

    def ping(self) -> None:
        """Be there: an answer that does not come says that its process died."""

    def answer(self, rows: Sequence[Row]) -> list[Answer]:
        """Call the user's code, and give an answer for each row."""
        begun_s = time.monotonic()
        self._starved_s += begun_s - self._ended_s
        if self._spec.batch_size is not None:
            answers = self._batch(batch_of([(list(rows), 0, len(rows))]))
        elif self._loop is not None:
            made = self._loop.run_until_complete(_gathered(self._call, rows))
            answers = [self._failed(each) if isinstance(each, Exception) else self._written(each) for each in made]
        else:
            answers = [self._one(row) for row in rows]
        self._ended_s = time.monotonic()
        self._busy_s += self._ended_s - begun_s
        self._calls = self._calls.with_call(len(rows), self._ended_s - begun_s)
        self._rows_in += len(rows)
        self._rows_out += sum(not answer.error for answer in answers)
        self._reporter.sample("counts", self._counts())
        return answers

    def _counts(self) -> ReplicaSampled:
        return ReplicaSampled(
            stage=self._spec.name,
            replica=self._name,
            rows_in=self._rows_in,
            rows_out=self._rows_out,
            busy_s=self._busy_s,
            starved_s=self._starved_s,
            blocked_s=0.0,
        )

    def _one(self, row: Row) -> Answer:
        try:
            made = self._call(row)
            return self._written(list(made) if inspect.isgenerator(made) else made)
        except Exception as exc:
            return self._failed(exc)

    def _written(self, made: Any) -> Answer:
        try:
            return Answer(json=as_json("an answer", made))
        except Exception as exc:
            return self._failed(exc)

    def _batch(self, batch: Any) -> list[Answer]:
        """Call the batch form; a batch that fails is halved, so that only those requests fail that fail alone."""
        count = num_rows(batch)
        try:
            made = self._call(batch)
            if num_rows(made) != count:
                raise ValueError(f"{self._spec.name} made {num_rows(made)} answers of {count} requests")
            return [Answer(json=as_json("an answer", row)) for row in rows_of([(made, 0, count)])]
        except Exception as exc:
            if count == 1:
                return [self._failed(exc)]
            return [*self._batch(slice_of(batch, 0, count // 2)), *self._batch(slice_of(batch, count // 2, count))]

    def _failed(self, error: Exception) -> Answer:
        print(self._payload.traceback_of(error))  # noqa: T201  (into the replica's log)
        return Answer(error=describe(error))


async def _gathered(call: Any, rows: Sequence[Row]) -> list[Any]:
    """Call an async function for all rows at once. No method: a class with one would be an async actor to Ray."""
    return await asyncio.gather(*map(call, rows), return_exceptions=True)
