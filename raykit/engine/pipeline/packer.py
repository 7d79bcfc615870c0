"""Rows that come one by one, packed into blocks: of so many rows or bytes, or of what came in a short time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

from raykit.engine.pipeline.blocks import Rows, bytes_of


class Packer:
    """One thread adds rows, and waits while a full block is not taken; another takes blocks."""

    def __init__(self, *, max_rows: int, max_bytes: int, max_wait_s: float) -> None:
        self._max_rows, self._max_bytes, self._max_wait_s = max_rows, max_bytes, max_wait_s
        self._changed = threading.Condition()
        self._rows: Rows = []
        self._num_bytes = 0
        self._begun_s = 0.0
        self._is_closed = False

    def add(self, row: dict[str, Any]) -> None:
        """Take a row; blocking while there is no room."""
        size = bytes_of(row)
        with self._changed:
            self._changed.wait_for(lambda: not self._is_full)
            if not self._rows:
                self._begun_s = time.monotonic()
            self._rows.append(row)
            self._num_bytes += size
            if len(self._rows) == 1 or self._is_full:
                self._changed.notify_all()

    def close(self) -> None:
        """Let the blocks end after the rows that are there."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def blocks(self) -> Iterator[tuple[Rows, int]]:
        """Give (rows, bytes), no row later than ``max_wait_s`` after the first of its block came."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._rows or self._is_closed)
                wait_s = self._begun_s + self._max_wait_s - time.monotonic()
                self._changed.wait_for(lambda: self._is_full or self._is_closed, max(0.0, wait_s))
                block = self._rows, self._num_bytes
                self._rows, self._num_bytes = [], 0
                self._changed.notify_all()
            if not block[0]:
                return
            yield block

    @property
    def _is_full(self) -> bool:
        return len(self._rows) >= self._max_rows or self._num_bytes >= self._max_bytes
