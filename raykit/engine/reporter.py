"""From a worker to its host: events, samples and printed lines, in one call a tick.

A reporter never holds the user's code up. When the host is away it keeps what must not be lost and tries again; when no
host has come back for ``HOST_GRACE_S`` the worker ends itself, so that nothing is left running for nobody.
"""

from __future__ import annotations

import fcntl
import io
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TextIO

import ray

from raykit.engine.folder import RunFolder
from raykit.engine.screen import Screen, shown
from raykit.events import Event, LinesPrinted

TICK_S = 0.1
BEAT_S = 1.0
PULSE_S = 0.25
CALL_TIMEOUT_S = 5.0
HOST_GRACE_S = 60.0
MAX_LINES_AT_ONCE = 200  # which a view keeps
MAX_LINES_A_S = 500
MAX_BYTES_A_TICK = 8_000_000
MAX_REST_BYTES = 16_000
OUTPUT, ERRORS = 1, 2
OPEN_S, MAX_OPEN_S = 0.5, 2.0  # an open line is shown anew so often, less often when that goes on
MAX_KEPT_EVENTS = 10_000


class Reporter:
    """One a worker process and run. Threads may share it."""

    def __init__(self, host: Any, source: str, folder: RunFolder, *, pulse: Callable[[], Any] | None = None) -> None:
        """Store; ``pulse`` gives what goes with each call, and makes calls as often as a host must hear of a rank."""
        self._host, self._source, self._folder = host, source, folder
        self._log = f"logs/{source}.log"
        self._is_here = folder.is_here
        self._written = _Written(folder.path / self._log if self._is_here else None)
        self._pulse, self._beat_s = pulse, PULSE_S if pulse else BEAT_S
        self._lock = threading.RLock()  # a signal's handler may print, or report, in the middle of either
        self._events: list[Event] = []
        self._samples: dict[Any, Event] = {}
        self._allowance, self._allowed_s = float(MAX_LINES_AT_ONCE), time.monotonic()
        self._tees: list[_Tee] = []
        self._open: tuple[str, ...] = ()
        self._opened_s = self._shown_s = 0.0
        self._wake = threading.Event()
        self._flushes = threading.Condition()
        self._num_asked = self._num_flushed = 0
        self._closing = False
        self._thread = threading.Thread(target=self._loop, name="raykit-reporter", daemon=True)

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

    def lines(self, texts: Sequence[str]) -> None:
        """Write printed lines to the file, from which they are sent, unless there were too many of late."""
        self._written.write(texts)

    def in_place_of_output(self) -> AbstractContextManager[None]:
        """Have the file descriptors of output and errors lead to the file."""
        return self._written.in_place_of(OUTPUT, ERRORS)

    def add(self, tee: _Tee) -> None:
        """Look at what a stream has open from now on."""
        self._tees.append(tee)

    def settle(self, *, but: _Tee) -> None:
        """Have the other streams hand on what is complete."""
        for tee in list(self._tees):
            if tee is not but:
                tee.settle()

    def remove(self, tee: _Tee) -> None:
        """Look at a stream no more."""
        self._tees.remove(tee)

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

    def _printed(self, now_s: float) -> tuple[tuple[str, ...], int]:
        """Return the lines since the last tick that are sent, and the number of the others."""
        self._allowance = min(MAX_LINES_AT_ONCE, self._allowance + MAX_LINES_A_S * (now_s - self._allowed_s))
        self._allowed_s = now_s
        sent: list[str] = []
        num_dropped = 0
        while text := self._written.read():
            if not self._is_here:
                with suppress(ray.exceptions.RayError):  # without a head there is nobody to read them
                    self._folder.append(self._log, text)
            lines = text.split("\n")[:-1]
            num_sent = min(len(lines), int(self._allowance))
            self._allowance -= num_sent
            sent += map(shown, lines[:num_sent])
            num_dropped += len(lines) - num_sent
        return tuple(sent), num_dropped

    def _take(self) -> list[Event]:
        tees = list(self._tees)
        for tee in tees:
            tee.settle()
        now_s, open_lines = time.monotonic(), tuple(line for tee in tees for line in tee.open_lines())
        lines, num_dropped = self._printed(now_s)
        open_lines += (self._written.rest,) if self._written.rest else ()
        with self._lock:
            events = [*self._events, *self._samples.values()]
            self._events, self._samples = [], {}
        if lines or num_dropped or self._shows(open_lines, now_s):
            events.append(LinesPrinted(source=self._source, lines=lines, num_dropped=num_dropped, open_lines=open_lines))
            self._open, self._shown_s = open_lines, now_s
        return events

    def _shows(self, open_lines: tuple[str, ...], now_s: float) -> bool:
        """Return whether open lines are news. A line that is complete at the next tick is none."""
        if not open_lines:
            self._opened_s = 0.0
            return bool(self._open)
        if not self._opened_s:
            self._opened_s = now_s
            return False
        rest_s = min(MAX_OPEN_S, max(OPEN_S, (now_s - self._opened_s) / 30))
        return open_lines != self._open and now_s - self._shown_s >= rest_s

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


class _Written:
    """The file of what a worker prints, also what its forked children print; read from where it was read last.

    Lines are in it before a print returns: the last ones before a crash say most.
    """

    def __init__(self, file: Path | None) -> None:
        """Open it; without a path one of this machine's own, which has no name."""
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
        if file is None:
            with tempfile.TemporaryFile() as made:
                self._file = os.dup(made.fileno())
            fcntl.fcntl(self._file, fcntl.F_SETFL, flags)
        else:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = os.open(file, flags, 0o600)
        self._at = os.fstat(self._file).st_size
        self.rest = ""

    def write(self, lines: Sequence[str]) -> None:
        """Add lines, in one write: others add theirs."""
        left = memoryview("".join(f"{line}\n" for line in lines).encode(errors="backslashreplace"))
        while left:
            left = left[os.write(self._file, left) :]

    def read(self) -> str:
        """Return the whole lines since the last call, up to a number of bytes; what is left of them is ``rest``."""
        data = os.pread(self._file, MAX_BYTES_A_TICK, self._at)
        end = data.rfind(b"\n") + 1
        if not end and len(data) == MAX_BYTES_A_TICK:
            data, end = data + b"\n", len(data) + 1
        self._at += min(end, MAX_BYTES_A_TICK)
        self.rest = shown(data[end:][-MAX_REST_BYTES:].decode(errors="replace"))
        return data[:end].decode(errors="replace")

    @contextmanager
    def in_place_of(self, *descriptors: int) -> Iterator[None]:
        """Have what goes to file descriptors written here: that of programs, and of code that is not Python's."""
        kept = [os.dup(each) for each in descriptors]
        for each in descriptors:
            os.dup2(self._file, each)
        try:
            yield
        finally:
            for each, earlier in zip(descriptors, kept, strict=True):
                os.dup2(earlier, each)
                os.close(earlier)


@contextmanager
def captured(reporter: Reporter, *, programs: bool = True) -> Iterator[None]:
    """Send what this process prints to the reporter, line by line; what its programs print too, unless that is left out."""
    out, err = sys.stdout, sys.stderr
    out.flush()
    err.flush()
    tees = _Tee(out, reporter), _Tee(err, reporter)
    sys.stdout, sys.stderr = tees
    try:
        with reporter.in_place_of_output() if programs else nullcontext():
            yield
    finally:
        for tee in tees:
            tee.end()
        sys.stdout, sys.stderr = out, err


class _Tee(io.TextIOBase):
    """A text stream that hands on what a terminal would show, line by line."""

    def __init__(self, under: TextIO, reporter: Reporter) -> None:
        self._under, self._reporter, self._screen = under, reporter, Screen()
        self._lock = threading.RLock()  # a signal's handler may print in the middle of a print
        os.register_at_fork(after_in_child=self._begin_in_child)
        reporter.add(self)

    def write(self, text: str) -> int:
        if "\n" in text:
            self._reporter.settle(but=self)  # what bars on the other stream have finished stands before it
        with self._lock:
            if done := self._screen.write(text):
                self._reporter.lines(done)
        return len(text)

    def _begin_in_child(self) -> None:
        """Let a forked child print: its lines are read by the parent, from the file."""
        self._lock, self._screen = threading.RLock(), Screen()

    def settle(self) -> None:
        """Hand on what is complete, as far as that can be said."""
        with self._lock:
            if done := self._screen.settle():
                self._reporter.lines(done)

    def open_lines(self) -> tuple[str, ...]:
        """Return what is still being written."""
        with self._lock:
            return self._screen.open_lines()

    def end(self) -> None:
        """Hand on what is left."""
        with self._lock:
            if done := self._screen.close():
                self._reporter.lines(done)
        self._reporter.remove(self)

    def flush(self) -> None:
        self._under.flush()

    def fileno(self) -> int:
        return self._under.fileno()

    encoding = "utf-8"
