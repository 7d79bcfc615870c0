"""The actor of a source that is a function: it calls the function, and gives its rows in blocks."""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from raykit.engine.folder import RunFolder
from raykit.engine.pipeline.calls import Facts
from raykit.engine.pipeline.packer import Packer
from raykit.engine.reporter import Reporter, captured
from raykit.engine.run import describe
from raykit.engine.threads import limit_threads
from raykit.errors import SourceError
from raykit.spec.rows import rows_in
from raykit.wire.payload import SOURCE

NAME = "source"
WHERE = "the source"
MAX_BYTES = 4_000_000  # a dozen such blocks are on their way to the stages
MAX_WAIT_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What the call of the function came to: rows, a Ray Dataset, or an error."""

    is_dataset: bool = False
    failure: Facts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The rows and bytes of the block that was given before it."""

    num_rows: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The rows are over, after ``num_rows`` with those that were skipped, or by an error."""

    num_rows: int
    failure: Facts | None = None


class Reader:
    """What runs in the actor. The user's code has a thread of its own: rows are passed on while the next one is awaited."""

    def __init__(self, host: Any, folder: RunFolder) -> None:
        self._reporter = Reporter(host, NAME, folder).start()
        self._payload = folder.payload()
        self._thread = ThreadPoolExecutor(1)  # the same for call and rows: a connection of SQLite serves its own thread alone
        self._made: Any = None
        self._rows: Iterator[dict[str, Any]] = iter(())
        self._num_rows = 0

    def open(self) -> Opened:
        """Call the function; blocking for as long as it does."""
        opened = self._thread.submit(self._open).result()
        if opened.failure is not None:
            self._reporter.close()
        return opened

    def blocks(self, *, skip: int, limit: int | None, max_rows: int) -> Iterator[Any]:
        """Give the rows after the first ``skip`` up to ``limit``: each block with its :class:`Size`, last None and :class:`Ended`."""
        packer = Packer(max_rows=max_rows, max_bytes=MAX_BYTES, max_wait_s=MAX_WAIT_S)
        over = self._thread.submit(self._take_in, packer, skip, limit)
        for rows, num_bytes in packer.blocks():
            yield rows
            yield Size(num_rows=len(rows), num_bytes=num_bytes)
        failure = over.result()
        self._reporter.close()
        yield None
        yield Ended(num_rows=self._num_rows, failure=failure)

    def _open(self) -> Opened:
        try:
            with captured(self._reporter):
                return self._opened()
        except BaseException as exc:  # SystemExit too, which would end the actor without a word
            return Opened(failure=self._facts(exc))

    def _opened(self) -> Opened:
        limit_threads(0)
        self._made = self._payload.open_extra(SOURCE)()
        if _is_dataset(self._made):
            return Opened(is_dataset=True)
        rows = rows_in(self._made)
        if rows is None:
            raise SourceError(f"the function made a {type(self._made).__name__}, neither an iterable of rows nor a Ray Dataset")
        self._rows = rows
        return Opened()

    def _take_in(self, packer: Packer, skip: int, limit: int | None) -> Facts | None:
        try:
            with captured(self._reporter):
                for row in itertools.islice(self._rows, limit):
                    self._num_rows += 1
                    if self._num_rows > skip:
                        packer.add(row)
                if inspect.isgenerator(self._made):
                    self._made.close()  # one that would go on beyond the limit has its own things to put away
        except BaseException as exc:
            return self._facts(exc)
        finally:
            packer.close()
        return None

    def _facts(self, error: BaseException) -> Facts:
        return WHERE, describe(error), self._payload.traceback_of(error)


def _is_dataset(made: Any) -> bool:
    data = sys.modules.get("ray.data")
    return data is not None and isinstance(made, data.Dataset)
