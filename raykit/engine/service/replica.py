"""A replica of a service: the user's function or class, called with the requests that are there."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Sequence
from typing import Any

import ray

from raykit.engine.folder import RunFolder
from raykit.engine.pipeline.calls import Ready
from raykit.engine.reporter import Reporter, captured
from raykit.engine.run import describe, is_end_of_process
from raykit.engine.service.handler import Answer, Handler
from raykit.engine.threads import limit_threads
from raykit.events import ReplicaSampled, ReplicaStarted
from raykit.policy.serving import Calls
from raykit.spec import StageSpec


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
            self._handler = Handler(work() if inspect.isclass(work) else work, spec.batch_size, self._payload)
            limit_threads(spec.num_threads or spec.num_cpus)  # once more: the user's imports brought their own thread pools
        except BaseException as exc:  # SystemExit too, which would end the actor without a word
            if is_end_of_process(exc):
                raise
            self._failure = (spec.name, describe(exc), self._payload.traceback_of(exc))
            return
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

    def answer(self, requests: Sequence[bytes]) -> list[Answer]:
        """Call the user's code, and return an answer to each request, a pickled row."""
        begun_s = time.monotonic()
        self._starved_s += begun_s - self._ended_s
        answers = self._handler.answers(requests)
        self._ended_s = time.monotonic()
        self._busy_s += self._ended_s - begun_s
        self._calls = self._calls.with_call(len(requests), self._ended_s - begun_s)
        self._rows_in += len(requests)
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
