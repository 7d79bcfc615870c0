"""The source as a stream of pieces, each of one span; spans that are written already are left out."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

from raykit.engine.pipeline import raydata
from raykit.engine.pipeline.flow import Piece
from raykit.engine.run import as_user_error
from raykit.spec import PipelineSpec
from raykit.wire.payload import Payload

AHEAD = 8

Given = tuple[Piece | None, tuple[int, ...]]
"""Rows, and the spans that have all of theirs now."""


class Source:
    """Reads ahead in a thread: a reader may block for as long as it likes."""

    def __init__(self, spec: PipelineSpec, value: Any, *, span_rows: int, written: frozenset[int], payload: Payload) -> None:
        self.is_over = False
        self.num_rows = min(len(value), spec.limit or len(value)) if spec.source.form == "items" else None
        self._spec, self._value, self._span_rows, self._written, self._payload = spec, value, span_rows, written, payload
        self._read: queue.Queue[Given | Exception | None] = queue.Queue(AHEAD)
        self._closed = threading.Event()
        threading.Thread(target=self._loop, name="raykit-source", daemon=True).start()

    @property
    def has_begun(self) -> bool:
        """Whether the first rows are there, or their end, or an error."""
        return not self._read.empty()

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
            raise as_user_error(given, self._payload, "the source") from given
        self.is_over = given is None
        return given

    def close(self) -> None:
        """Read no more."""
        self._closed.set()

    def _loop(self) -> None:
        try:
            for given in self._pieces():
                self._put(given)
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

    def _pieces(self) -> Iterator[Given]:
        """Cut blocks at the borders of spans."""
        begun = 0
        blocks = raydata.blocks_of(self._spec.source, self._value, limit=self._spec.limit, rows_a_block=self._span_rows)
        for block, num_rows, num_bytes in blocks:
            start = 0
            while start < num_rows:
                span = begun // self._span_rows
                stop = min(num_rows, start + (span + 1) * self._span_rows - begun)
                begun += stop - start
                is_full = begun == (span + 1) * self._span_rows
                if span not in self._written:
                    piece = Piece(block=block, start=start, stop=stop, span=span, row_bytes=num_bytes / num_rows)
                    yield piece, (span,) if is_full else ()
                start = stop
        span, rest = divmod(begun, self._span_rows)
        if rest and span not in self._written:
            yield None, (span,)
