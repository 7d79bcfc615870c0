"""A replica of a stage: the user's function or class, counted where it runs."""

from __future__ import annotations

import inspect
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from raykit.engine.reporter import Reporter, captured
from raykit.engine.run import describe, limit_threads
from raykit.events import ReplicaSampled, ReplicaStarted, UserFailed
from raykit.spec import StageSpec
from raykit.wire.payload import Payload, PipelineWork


class StageFailedError(Exception):
    """The user's code raised in a stage. Facts: where, the error's one line, the user's frames."""


class StageWorker:
    """What Ray Data builds in each actor of a stage's pool and calls with each row or batch.

    ``__call__`` is a generator for the row form, so that one row may give several.
    """

    def __init__(self, host: Any, folder: Path, spec: StageSpec) -> None:
        self._spec = spec
        actor = ray.get_runtime_context().get_actor_id() or "task"
        self._replica = f"{spec.name}-{actor[:8]}"
        self._reporter = Reporter(host, self._replica, folder / "logs" / f"{self._replica}.log").start()
        self._payload = Payload.from_bytes((folder / "payload").read_bytes())
        self._rows_in = self._rows_out = 0
        self._busy_s = 0.0
        begun_s = time.monotonic()
        captured(self._reporter).__enter__()
        try:
            limit_threads(spec.num_cpus)
            self._call = self._build()
            limit_threads(spec.num_cpus)  # once more: the user's imports brought their own thread pools
        except Exception as exc:
            raise self._failed(exc) from None
        self._ready_s = time.monotonic()
        node = ray.get_runtime_context().get_node_id()[:8]
        start_s = self._ready_s - begun_s
        self._reporter.emit(ReplicaStarted(stage=spec.name, replica=self._replica, pid=os.getpid(), node=node, start_s=start_s))

    def _build(self) -> Any:
        work: PipelineWork = self._payload.open()
        mine = next(each for each in work.stages if self._is_mine(each))
        return mine() if inspect.isclass(mine) else mine

    def _is_mine(self, work: Any) -> bool:
        marked: StageSpec | None = getattr(work, "__raykit_stage__", None)
        return (marked.name if marked else getattr(work, "__name__", "stage")) == self._spec.name

    def rows(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The row form."""
        for result in self._timed(row, num_rows=1):
            made = result if isinstance(result, dict) else {"item": result}
            self._rows_out += 1
            yield made
        self._sample()

    def batches(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The batch form."""
        for result in self._timed(batch, num_rows=len(next(iter(batch.values())))):
            self._rows_out += len(next(iter(result.values()))) if result else 0
            yield result
        self._sample()

    def _timed(self, item: dict[str, Any], *, num_rows: int) -> Iterator[Any]:
        """Give what the user's code makes of ``item``; only the time inside that code counts as busy."""
        self._rows_in += num_rows
        try:
            begun_s = time.perf_counter()
            made = self._call(item)
            results = made if inspect.isgenerator(made) else iter([made] if made is not None else [])
            for result in results:
                self._busy_s += time.perf_counter() - begun_s
                if result is not None:
                    yield result
                begun_s = time.perf_counter()
            self._busy_s += time.perf_counter() - begun_s
        except Exception as exc:
            raise self._failed(exc) from None

    def _sample(self) -> None:
        lived_s = time.monotonic() - self._ready_s
        self._reporter.sample(
            "counts",
            ReplicaSampled(
                stage=self._spec.name,
                replica=self._replica,
                rows_in=self._rows_in,
                rows_out=self._rows_out,
                busy_s=self._busy_s,
                waiting_s=max(0.0, lived_s - self._busy_s),
            ),
        )

    def _failed(self, error: Exception) -> StageFailedError:
        facts = self._spec.name, describe(error), self._payload.traceback_of(error)
        self._reporter.emit(UserFailed(where=facts[0], error=facts[1], traceback_text=facts[2]))
        sys.stdout.flush()
        self._reporter.close()
        return StageFailedError(*facts)
