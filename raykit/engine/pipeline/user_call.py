"""The user's function, called with rows or batches: retried, halved and answered as its stage says, each result with its origin."""

from __future__ import annotations

import asyncio
import inspect
import reprlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cloudpickle
import numpy as np

from raykit.engine.pipeline.blocks import Batch, as_batch, batch_of, num_rows, rows_of, slice_of
from raykit.engine.pipeline.calls import BadRow, Way
from raykit.engine.pipeline.costs import CostOf, reach, weighed
from raykit.engine.pipeline.row_order import Origins, spread
from raykit.engine.run import describe, is_end_of_process
from raykit.spec import StageSpec
from raykit.spec.rows import as_row
from raykit.wire.payload import Payload

Row = dict[str, Any]
Numbered = tuple[int, Row]
"""A row with the number of the row of the call that it is, or was made of."""

HOW_TO_KEEP = "To put rows that fail aside and run the others: @rk.stage(on_error='quarantine')"


class CallFailedError(Exception):
    """The user's code raised, and the stage wants the run to end. Facts: the error's one line, the user's frames.

    Its own class, since what the user raised may mean something to a loop on its way: StopIteration would end it in silence.
    """


class UserCall:
    """Calls ``function`` as ``spec`` and ``way`` say.

    Args:
        function: takes a row or a batch; an object with ``__call__``, or a function, may be ``async`` or a generator.
        spec: of the stage.
        payload: has the texts of the user's code, for tracebacks.
        on_error: what a result is asked of when the function raised; None where the stage has another answer.
        cost: of a row: a column or a function.
        halved: is told how many rows a batch may have from now on, when one did not fit the GPU.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        spec: StageSpec,
        payload: Payload,
        *,
        on_error: Callable[..., Any] | None = None,
        cost: CostOf | str | None = None,
        halved: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._function, self._spec, self._payload = function, spec, payload
        self._on_error, self._cost, self._halved = on_error, cost, halved
        method = function if inspect.isroutine(function) else type(function).__call__
        self.is_async = inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)
        self._loop = asyncio.new_event_loop() if self.is_async else None
        self._threads: ThreadPoolExecutor | None = None
        self._way = Way(batch_size=spec.batch_size, concurrency=1)
        self._check: Callable[[Any], Any] | None = None
        self._max_rows = sys.maxsize  # of a batch that fits the GPU, once one did not
        self.busy_s = 0.0
        self.bad: list[BadRow] = []
        self.is_guess = False

    def prepare(self, way: Way, check: Callable[[Any], Any] | None) -> None:
        """Set how the rows of the next call are given to the function.

        Args:
            way: how many at once.
            check: is called with each row or batch that the function gives; where it raises, the function's rows have failed.
        """
        if way.concurrency != self._way.concurrency:
            self._threads = ThreadPoolExecutor(way.concurrency) if way.concurrency > 1 and not self.is_async else None
        self._way, self._check, self.bad, self.is_guess = way, check, [], False

    def close(self) -> None:
        """Close the event loop of an async function."""
        if self._loop is not None:
            self._loop.close()

    def rows(self, rows: Iterable[Numbered]) -> Iterator[Numbered]:
        """Call the row form, and yield its results in the order of the rows; several calls at once where the stage allows it.

        Raises:
            CallFailedError: the function raised, and the stage wants the run to end.
        """
        begun_s = time.perf_counter()
        if self._loop is not None and isinstance(rows, list):
            results = iter(self._loop.run_until_complete(self._gathered(rows)))
        elif self._threads is not None and isinstance(rows, list):
            results = self._threads.map(self._one, rows)
        else:
            results = map(self._one, rows)
        for number, made in results:
            self.busy_s += time.perf_counter() - begun_s
            yield from ((number, each) for each in made)
            begun_s = time.perf_counter()
        self.busy_s += time.perf_counter() - begun_s

    def batches(self, batch: Batch) -> Iterator[tuple[Batch, Origins]]:
        """Call the batch form: with as many rows as the stage wants, or as its limit of cost allows.

        Raises:
            CallFailedError: as :meth:`rows`.
        """
        numbers, costs = np.arange(num_rows(batch)), None
        if self._cost is not None:
            numbers, costs, unknown = weighed(batch, self._cost)
            for number, error in unknown:
                yield from self._answered_batch(slice_of(batch, number, number + 1), np.array([number]), error)
            batch = {name: np.asarray(column)[numbers] for name, column in batch.items()}
        at = 0
        while at < num_rows(batch):
            most = min(self._way.batch_size or 1, self._max_rows)
            stop = at + most if costs is None else reach(costs, at, most=most, max_cost=self._spec.max_cost or 0.0)
            begun_s = time.perf_counter()
            made = self._batch(slice_of(batch, at, stop), numbers[at:stop])
            self.busy_s += time.perf_counter() - begun_s
            yield from made
            at = stop

    def one_batch(self, number: int, row: Row) -> Iterator[tuple[Batch, Origins]]:
        """Call the batch form with one row."""
        begun_s = time.perf_counter()
        made = self._batch(batch_of([([row], 0, 1)]), np.array([number]))
        self.busy_s += time.perf_counter() - begun_s
        yield from made

    def _one(self, numbered: Numbered) -> tuple[int, list[Row]]:
        number, row = numbered
        for left in reversed(range(1 + self._spec.num_retries)):
            try:
                return number, self._checked_rows(self._called(row))
            except BaseException as exc:  # SystemExit too, which would end the process without a word
                if not left or is_end_of_process(exc):
                    return number, self._answered_row(row, exc)
        raise AssertionError("a call ends or raises")

    async def _gathered(self, rows: list[Numbered]) -> list[tuple[int, list[Row]]]:
        gate = asyncio.Semaphore(self._way.concurrency)

        async def one(number: int, row: Row) -> tuple[int, list[Row]]:
            async with gate:
                for left in reversed(range(1 + self._spec.num_retries)):
                    try:
                        return number, self._checked_rows(await _awaited(self._function(row)))
                    except BaseException as exc:
                        if not left or is_end_of_process(exc):
                            return number, self._answered_row(row, exc)
                raise AssertionError("a call ends or raises")

        return await asyncio.gather(*(one(*numbered) for numbered in rows))

    def _batch(self, batch: Batch, numbers: Origins) -> list[tuple[Batch, Origins]]:
        """Call the batch form; a batch that fails, or does not fit the GPU, is halved where that can help."""
        size = len(numbers)
        try:
            return self._tried_batch(batch, numbers)
        except BaseException as exc:
            halves = [(slice_of(batch, *cut), numbers[slice(*cut)]) for cut in ((0, size // 2), (size // 2, size))]
            if (is_full := _is_out_of_memory(exc)) and size > 1:
                self._max_rows = max(1, size // 2)
                self._halved(self._max_rows)
            if size > 1 and not is_end_of_process(exc) and (is_full or self._spec.on_error == "quarantine"):
                return [made for half in halves for made in self._batch(*half)]
            return self._answered_batch(batch, numbers, exc)

    def _tried_batch(self, batch: Batch, numbers: Origins) -> list[tuple[Batch, Origins]]:
        for left in reversed(range(1 + self._spec.num_retries)):
            try:
                return self._with_origins(self._called(batch), numbers)
            except BaseException as exc:
                if not left or is_end_of_process(exc):
                    raise
        raise AssertionError("a call ends or raises")

    def _called(self, item: Any) -> list[Any]:
        """Call the function, and return all that it gives but None."""
        made = self._function(item)
        if self._loop is not None:
            return self._loop.run_until_complete(_awaited(made))
        return [each for each in (made if inspect.isgenerator(made) else [made]) if each is not None]

    def _checked_rows(self, made: list[Any]) -> list[Row]:
        rows = [_on_cpu(as_row(each)) for each in made]
        if self._check is not None:
            for row in rows:
                self._check([row])
        return rows

    def _with_origins(self, made: list[Any], numbers: Origins) -> list[tuple[Batch, Origins]]:
        batches = [as_batch(each) for each in made if not (isinstance(each, list) and not each)]
        if self._check is not None:
            for batch in batches:
                self._check(batch)
        num_made, at = sum(map(num_rows, batches)), 0
        origins = spread(num_made, numbers)
        self.is_guess |= num_made != len(numbers) and len(numbers) > 1
        found = []
        for batch in batches:
            found.append((batch, origins[at : at + num_rows(batch)]))
            at += num_rows(batch)
        return found

    def _answered_row(self, row: Row, error: BaseException) -> list[Row]:
        if self._on_error is None or is_end_of_process(error):
            return self._put_aside(row, error=error)
        return self._checked_rows(self._asked(row, error))

    def _answered_batch(self, batch: Batch, numbers: Origins, error: BaseException) -> list[tuple[Batch, Origins]]:
        if self._on_error is None or is_end_of_process(error):
            return self._put_aside(*rows_of([(batch, 0, len(numbers))]), error=error)
        return self._with_origins(self._asked(batch, error), numbers)

    def _asked(self, item: Any, error: BaseException) -> list[Any]:
        """Return what the user's ``on_error`` gives in place of a result."""
        try:
            made = self._on_error(item, error) if self._on_error is not None else None
        except BaseException as exc:
            raise CallFailedError(describe(exc), self._payload.traceback_of(exc)) from exc
        return [] if made is None else [made]

    def _put_aside(self, *rows: Row, error: BaseException) -> list[Any]:
        """Put a row into quarantine, or end the run, as the stage says.

        Raises:
            BaseException: the error, with which Ray ends this process.
        """
        if is_end_of_process(error):
            raise error
        said, frames = describe(error), self._payload.traceback_of(error)
        if self._spec.on_error == "quarantine":
            self.bad += [BadRow(row=_pickled(row), error=said, traceback_text=frames) for row in rows]
            return []
        more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
        raise CallFailedError(f"{said} (row {shown(rows[0])}{more})", f"{frames}{HOW_TO_KEEP}\n") from error


async def _awaited(made: Any) -> list[Any]:
    if inspect.isasyncgen(made):
        return [each async for each in made if each is not None]
    result = await made
    return [] if result is None else [result]


def shown(row: Row) -> str:
    """Return a row in a few words."""
    return _SHORT.repr(row)


class _Short(reprlib.Repr):
    def repr1(self, x: Any, level: int) -> str:
        shape = getattr(x, "shape", None)
        return f"{type(x).__name__} of shape {tuple(shape)}" if isinstance(shape, tuple) else super().repr1(x, level)


_SHORT = _Short()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxdict = 6


def _on_cpu(row: Row) -> Row:
    """Return a row that any process can read: its tensors leave the GPU."""
    return {name: value.cpu() if getattr(value, "is_cuda", False) else value for name, value in row.items()}


def _is_out_of_memory(error: BaseException) -> bool:
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(error, torch.cuda.OutOfMemoryError):
        return False
    torch.cuda.empty_cache()
    return True


def _pickled(row: Row) -> bytes:
    """Pickle a row that is put aside; of one that does not pickle keep what its values look like."""
    try:
        return bytes(cloudpickle.dumps(row))
    except Exception:
        return bytes(cloudpickle.dumps({name: repr(value) for name, value in row.items()}))
