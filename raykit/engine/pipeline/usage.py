"""What this process uses: CPU time, the CPU time that its threads wanted, and memory."""

from __future__ import annotations

import resource
import sys
import time
from contextlib import suppress
from pathlib import Path

from raykit.engine.pipeline.calls import Use

LOOK_S = 1.0
THREADS = Path("/proc/self/task")
PEAK_UNIT = 1 if sys.platform == "darwin" else 1024


class Usage:
    """Looks at one call a second at most: a look reads a file for each thread."""

    def __init__(self) -> None:
        self._looked_s = 0.0
        self._begun: tuple[float, float, float] | None = None

    def begin(self) -> None:
        """A call begins."""
        now_s = time.monotonic()
        self._begun = (now_s, time.process_time(), _queued_s()) if now_s - self._looked_s > LOOK_S else None

    def end(self) -> Use | None:
        """Give what the call used, None where it was not looked at."""
        if self._begun is None:
            return None
        begun_s, cpu_begun_s, queued_begun_s = self._begun
        self._looked_s = time.monotonic()
        cpu_s = time.process_time() - cpu_begun_s
        return Use(
            taken_s=self._looked_s - begun_s,
            cpu_s=cpu_s,
            wanted_s=cpu_s + max(0.0, _queued_s() - queued_begun_s),
            peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * PEAK_UNIT,
        )


def _queued_s() -> float:
    """Give how long the threads have waited for a CPU, 0 where the system does not count that."""
    queued_ns = 0
    for file in THREADS.glob("*/schedstat"):
        with suppress(OSError):  # a thread that has ended
            queued_ns += int(file.read_text().split()[1])
    return queued_ns / 1e9
