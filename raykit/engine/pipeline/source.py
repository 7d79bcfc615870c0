"""The source as a stream of pieces, each of one span; spans that are written already are left out."""

from __future__ import annotations

import inspect
import itertools
import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any

from raykit.engine.pipeline import raydata
from raykit.engine.pipeline.filereader import file_blocks
from raykit.engine.pipeline.flow import Piece
from raykit.engine.pipeline.reader import WHERE
from raykit.engine.pipeline.row_order import source_keys
from raykit.engine.pipeline.stream import Stream
from raykit.engine.run import RunContext, UserCodeError, as_user_error
from raykit.spec import PipelineSpec
from raykit.wire.payload import Payload

AHEAD = 8

Given = tuple[Piece | None, tuple[int, ...]]
"""Rows, and the spans that have all of theirs now."""


class Source:
    """Reads ahead in a thread: a reader may block for as long as it likes. ``num_rows`` is there when it is known."""

    def __init__(self, context: RunContext, value: Any, *, span_rows: int, written: frozenset[int], payload: Payload) -> None:
        spec: PipelineSpec = context.spec
        self.is_over = False
        self.num_rows = min(len(value), spec.limit or len(value)) if spec.source.form == "items" else None
        self._spec, self._value, self._span_rows, self._written, self._payload = spec, value, span_rows, written, payload
        self._stream = Stream(context, limit=spec.limit, span_rows=span_rows) if spec.source.form == "function" else None
        self._read: queue.Queue[Given | Exception | None] = queue.Queue(AHEAD)
        self._closed = threading.Event()
        threading.Thread(target=self._loop, name="raykit-source", daemon=True).start()

    @property
    def is_ready(self) -> bool:
        """Whether the stages may start: a dataset of the user's wants CPU slots for itself, and is made before they take them."""
        if self._stream is None or inspect.isgeneratorfunction(self._value):
            return True
        return self._stream.gives_rows or not self._read.empty()

    def take(self) -> Given | None:
        """Give what was read next, None where nothing was; ``is_over`` when there is no more.

        Raises:
            UserCodeError: the user's source raised.
        """
        try:
            given = self._read.get_nowait()
        except queue.Empty:
            return None
        if isinstance(given, Exception):
            raise given if isinstance(given, UserCodeError) else as_user_error(given, self._payload, WHERE) from given
        self.is_over = given is None
        return given

    def close(self) -> None:
        """Read no more."""
        self._closed.set()
        if self._stream is not None:
            self._stream.close()

    def _loop(self) -> None:
        try:
            with closing(self._blocks()) as blocks:
                for given in self._pieces(blocks):
                    self._put(given)
                    if self._closed.is_set():
                        return
            self._put(None)
        except Exception as exc:
            self._put(exc)

    def _put(self, given: Given | Exception | None) -> None:
        while not self._closed.is_set():
            try:
                self._read.put(given, timeout=1.0)
            except queue.Full:
                continue
            return

    def _pieces(self, blocks: Iterator[raydata.SourceBlock]) -> Iterator[Given]:
        """Cut blocks at the borders of spans."""
        begun = 0
        for block, num_rows, num_bytes in blocks:
            start = 0
            while start < num_rows:
                span, number = divmod(begun, self._span_rows)
                stop = min(num_rows, start + self._span_rows - number)
                begun += stop - start
                is_full = begun == (span + 1) * self._span_rows
                if span not in self._written:
                    keys = source_keys(number, number + stop - start)
                    piece = Piece(block=block, start=start, stop=stop, span=span, row_bytes=num_bytes / num_rows, keys=keys)
                    yield piece, (span,) if is_full else ()
                start = stop
        span, rest = divmod(begun, self._span_rows)
        if rest and span not in self._written:
            yield None, (span,)
        streamed = self._stream.num_rows if self._stream is not None else None
        self.num_rows = begun if streamed is None else streamed

    def _blocks(self) -> Generator[raydata.SourceBlock]:
        if self._stream is not None:
            written = next(span for span in itertools.count() if span not in self._written)
            yield from self._stream.blocks(skip=written * self._span_rows)
            if not self._stream.is_dataset:
                return
        if self._spec.source.form == "path":
            yield from file_blocks(self._spec.source, limit=self._spec.limit)
            return
        yield from raydata.blocks_of(self._spec.source, self._value, limit=self._spec.limit, rows_a_block=self._span_rows)
