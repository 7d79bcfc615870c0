"""The rows of a function, as the host sees them: an actor gives them, and another one in its place where it dies."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raykit.engine.pipeline.raydata import SourceBlock
from raykit.engine.pipeline.reader import WHERE, Ended, Opened, Reader
from raykit.engine.run import RunContext, StoppedError, UserCodeError, describe
from raykit.events import SourceRestarted

MAX_ROWS = 1024
MAX_UNTAKEN = 4  # objects, two for each block
MAX_DEATHS = 3  # with no row in between


class Stream:
    """Begins a dead actor's function again, and leaves out the rows that it gave: they come in the same order each time.

    ``gives_rows`` and ``is_dataset`` say what the function's call came to, and ``num_rows`` what it had in the end.
    """

    def __init__(self, context: RunContext, *, limit: int | None, span_rows: int) -> None:
        self.gives_rows = self.is_dataset = False
        self.num_rows: int | None = None
        self._context, self._limit = context, limit
        self._span_rows, self._max_rows = span_rows, min(span_rows, MAX_ROWS)
        self._lock = threading.Lock()
        self._is_closed = False
        self._reader: Any = None

    def blocks(self, *, skip: int) -> Iterator[SourceBlock]:
        """Give the blocks, blocking for as long as the function does; no block where it makes a Ray Dataset.

        The first ``skip`` rows are one block without content.

        Raises:
            UserCodeError: the function raised, made no rows, made fewer than before, or killed its process again and again.
        """
        given = num_deaths = 0
        while True:
            try:
                for block, num_rows, num_bytes in self._life(given, skip):
                    given, num_deaths = given + num_rows, 0
                    yield block, num_rows, num_bytes
            except ray.exceptions.RayTaskError as exc:  # such as a row that does not pickle
                raise UserCodeError(WHERE, describe(exc.cause), "") from exc
            except ray.exceptions.RayError as exc:
                num_deaths += 1
                if num_deaths == MAX_DEATHS:
                    died = f"its process died {num_deaths} times before it gave a row after the first {given:,}"
                    raise UserCodeError(WHERE, f"{died}: it was killed, or crashed in native code", "") from exc
                if not self._is_closed:
                    self._context.emit(SourceRestarted(num_rows=given, reason=describe(exc)))
            else:
                return

    def close(self) -> None:
        """End the actor, whatever it is at."""
        with self._lock:
            self._is_closed = True
            self._kill()

    def _life(self, given: int, skip: int) -> Iterator[SourceBlock]:
        """Give what one actor gives after ``given`` rows."""
        reader = self._start()
        opened: Opened = ray.get(reader.open.remote())
        if opened.failure is not None:
            raise UserCodeError(*opened.failure)
        self.is_dataset, self.gives_rows = opened.is_dataset, not opened.is_dataset
        if self.is_dataset:
            self.close()
            return
        if given < skip:
            yield None, skip - given, 0
        bounded = reader.blocks.options(num_returns="streaming", _generator_backpressure_num_objects=MAX_UNTAKEN)
        objects = bounded.remote(skip=max(given, skip), limit=self._limit, max_rows=self._max_rows)
        for block in objects:
            said = ray.get(next(objects, block))  # the last object of a dead actor is its error
            if isinstance(said, Ended):
                self.close()
                if said.failure is not None:
                    raise UserCodeError(*said.failure)
                earlier = given if given > skip else skip - self._span_rows + 1  # the last span that is written may be short
                if said.num_rows < earlier:
                    fewer = f"called again it gave {said.num_rows:,} rows, and at least {earlier:,} before"
                    raise UserCodeError(WHERE, f"{fewer}: a source has to give the same rows in the same order each time", "")
                self.num_rows = said.num_rows
                return
            yield block, said.num_rows, said.num_bytes
        raise AssertionError("the rows end with a word or by an error")

    def _start(self) -> Any:
        # On the host's node, so that no block is lost without the host, which then begins anew.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0, scheduling_strategy=here)(Reader)
        with self._lock:
            self._kill()
            if self._is_closed:
                raise StoppedError
            self._reader = actor.remote(self._context.host, self._context.run_folder)
            return self._reader

    def _kill(self) -> None:
        if self._reader is not None:
            ray.kill(self._reader)
            self._reader = None
