"""From a worker to its host: events, samples and printed lines, in one call a tick.

A reporter never holds the user's code up. When the host is away it keeps what must not be lost and tries again; when no
host has come back for ``HOST_GRACE_S`` the worker ends itself, so that nothing is left running for nobody.
"""

from __future__ import annotations

import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

import ray

from raykit.engine.folder import RunFolder
from raykit.events import Event, LinesPrinted

TICK_S = 0.1
BEAT_S = 1.0
PULSE_S = 0.25
CALL_TIMEOUT_S = 5.0
HOST_GRACE_S = 60.0
MAX_LINES_A_TICK = 50
MAX_KEPT_EVENTS = 10_000


class Reporter:
    """One a worker process and run. Threads may share it."""

    def __init__(self, host: Any, source: str, folder: RunFolder, *, pulse: Callable[[], Any] | None = None) -> None:
        """Store; ``pulse`` gives what goes with each call, and makes calls as often as a host must hear of a rank."""
        self._host, self._source, self._folder = host, source, folder
        self._log = f"logs/{source}.log"
        self._log_file = folder.path / self._log if folder.is_here else None
        self._unwritten: list[str] = []  # where the file is on another machine
        self._pulse, self._beat_s = pulse, PULSE_S if pulse else BEAT_S
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self._samples: dict[Any, Event] = {}
        self._lines: list[str] = []
        self._num_dropped = 0
        self._wake = threading.Event()
        self._flushes = threading.Condition()
        self._num_asked = self._num_flushed = 0
        self._closing = False
        self._thread = threading.Thread(target=self._loop, name="raykit-reporter", daemon=True)
        if self._log_file is not None:
            self._log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)

    def start(self) -> Reporter:
        self._thread.start()
        return self

    def emit(self, *events: Event) -> None:
        """Send events now; they are kept until a host took them."""
        with self._lock:
            self._events.extend(events)
        self._wake.set()

    def sample(self, key: Any, event: Event, *, at_once: bool = False) -> None:
        """Send the newest event of ``key``, with the next tick or now; an older one that was not sent yet is replaced."""
        with self._lock:
            self._samples[key] = event
        if at_once:
            self._wake.set()

    def line(self, text: str) -> None:
        """Write a printed line to the file, and send it unless there were too many since the last tick."""
        with self._lock:
            if self._log_file is None:
                self._unwritten.append(text)
            else:
                with self._log_file.open("a") as file:
                    file.write(text + "\n")
            if len(self._lines) < MAX_LINES_A_TICK:
                self._lines.append(text)
            else:
                self._num_dropped += 1

    def flush(self, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        """Wait until what was given so far, and the pulse as it is now, is with the host, up to ``timeout_s``."""
        with self._flushes:
            self._num_asked += 1
            mine = self._num_asked
            self._wake.set()
            self._flushes.wait_for(lambda: self._num_flushed >= mine, timeout_s)

    def close(self, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        """Send what is left and end; waits up to ``timeout_s``."""
        self._closing = True
        self._wake.set()
        self._thread.join(timeout_s)

    def _loop(self) -> None:
        heard_s = sent_s = time.monotonic()
        while True:
            self._wake.wait(TICK_S)
            self._wake.clear()
            closing, asked = self._closing, self._num_asked
            self._write_down()
            events = self._take()
            if events or asked > self._num_flushed or time.monotonic() - sent_s > self._beat_s:
                sent_s = time.monotonic()
                if self._send(events):
                    heard_s = time.monotonic()
                else:
                    self._keep(events)
                    if time.monotonic() - heard_s > HOST_GRACE_S:
                        os._exit(1)
                    if not closing:
                        time.sleep(TICK_S)
                        continue
            with self._flushes:
                self._num_flushed = asked
                self._flushes.notify_all()
            if closing:
                return

    def _write_down(self) -> None:
        """Add the lines since the last tick to a file on another machine."""
        with self._lock:
            lines, self._unwritten = self._unwritten, []
        if lines:
            with suppress(ray.exceptions.RayError):  # without a head there is nobody to read them
                self._folder.append(self._log, "".join(f"{line}\n" for line in lines))

    def _take(self) -> list[Event]:
        with self._lock:
            events = [*self._events, *self._samples.values()]
            if self._lines or self._num_dropped:
                lines = LinesPrinted(source=self._source, lines=tuple(self._lines), num_dropped=self._num_dropped)
                events.append(lines)
            self._events, self._samples, self._lines, self._num_dropped = [], {}, [], 0
        return events

    def _keep(self, events: list[Event]) -> None:
        with self._lock:
            self._events = [*events, *self._events][-MAX_KEPT_EVENTS:]

    def _send(self, events: list[Event]) -> bool:
        try:
            # By its future: a plain ray.get warns in the processes of async actors.
            pulse = self._pulse() if self._pulse else None
            self._host.report.remote(self._source, events, pulse).future().result(CALL_TIMEOUT_S)
        except (ray.exceptions.RayError, TimeoutError):
            return False
        return True


@contextmanager
def captured(reporter: Reporter) -> Iterator[None]:
    """Send what this process prints to the reporter, line by line."""
    out, err = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Tee(out, reporter), _Tee(err, reporter)
    try:
        yield
    finally:
        for tee in (sys.stdout, sys.stderr):
            if isinstance(tee, _Tee):
                tee.flush_rest()
        sys.stdout, sys.stderr = out, err


class _Tee(io.TextIOBase):
    """A text stream that hands whole lines on. A carriage return starts the line anew, as bars mean it."""

    def __init__(self, under: TextIO, reporter: Reporter) -> None:
        self._under, self._reporter, self._rest = under, reporter, ""

    def write(self, text: str) -> int:
        self._rest += text
        *lines, self._rest = self._rest.split("\n")
        for line in lines:
            self._reporter.line(line.rpartition("\r")[2])
        return len(text)

    def flush_rest(self) -> None:
        if self._rest:
            self._reporter.line(self._rest.rpartition("\r")[2])
            self._rest = ""

    def flush(self) -> None:
        self._under.flush()

    def fileno(self) -> int:
        return self._under.fileno()

    encoding = "utf-8"
