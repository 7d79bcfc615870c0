"""A host's pen: writes a run's events to the log from a thread of its own, so that the host's loop never waits for the disk."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import queue
import threading
import time
from collections.abc import Sequence

from raykit.engine.run import Written
from raykit.events import Event
from raykit.store.log import Log, LogError

logger = logging.getLogger(__name__)

RETRY_S = 1.0
PATIENCE_S = 5.0


class Journal:
    """Writes events in their order; while the log cannot be written, as on a full disk, they wait."""

    def __init__(self, log: Log, run: str) -> None:
        self.log = log
        self._run, self._number = run, 0
        self._queue: queue.SimpleQueue[Event | Written | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="raykit-journal", daemon=True)
        self._thread.start()

    def emit(self, *events: Event, then: Written | None = None) -> None:
        for event in events:
            self._queue.put(event)
        if then is not None:
            self._queue.put(then)

    async def written(self) -> None:
        """Return when the log has all that was emitted, or after ``PATIENCE_S``: on a full disk a run must end, too."""
        written = concurrent.futures.Future[int]()
        self.emit(then=written.set_result)
        await asyncio.wait([asyncio.wrap_future(written)], timeout=PATIENCE_S)

    def close(self) -> None:
        """Return when the log has all that was emitted; nothing is to be emitted any more."""
        self._queue.put(None)
        self._thread.join()

    def _write(self) -> None:
        open_ = True
        while open_:
            batch = [self._queue.get()]
            while not self._queue.empty():
                batch.append(self._queue.get())
            open_ = None not in batch
            told = [each for each in batch if callable(each)]
            if events := [each for each in batch if each is not None and not callable(each)]:
                self._number = self._append(events)
            for tell in told:
                tell(self._number)

    def _append(self, events: Sequence[Event]) -> int:
        while True:
            try:
                return self.log.append(self._run, events)
            except LogError as exc:
                logger.warning("what %s tells has to wait: %s", self._run, exc)
                time.sleep(RETRY_S)
