"""The vigil over a world: pulses are heard, suspects are looked at on their nodes, and who hangs is ended.

Looks run in threads of their own: a node that does not answer holds up neither the host's loop nor other looks.
"""

from __future__ import annotations

import queue
import statistics
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray

from raykit.engine.losses import GONE
from raykit.engine.training.watch import Watch, on_node
from raykit.policy.failure import STILL_S, Heard, Pulse, Suspect, suspects
from raykit.policy.membership import SILENT_S
from raykit.spec.training import LossCause

NODE_TIMEOUT_S = 2.0
MEDIAN_STEPS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a worker's process is."""

    pid: int
    node_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hung:
    """A worker that was ended, or whose node was given up, with the place where its code stood."""

    worker: str
    cause: str
    kind: LossCause = "hung"
    stack: str = ""


class Vigil:
    """One a training run. ``hear`` and ``look`` are called from one thread."""

    def __init__(self, *, own_node_id: str, hang_after_s: float) -> None:
        self._hang_after_s = hang_after_s
        self._watches: dict[str, Any] = {own_node_id: Watch()}
        self._heard: dict[str, tuple[float, float, Pulse]] = {}
        self._steps_s: deque[float] = deque(maxlen=MEDIAN_STEPS)
        self._looked_at: set[str] = set()
        self._found: queue.SimpleQueue[Hung] = queue.SimpleQueue()

    def guard(self, node_ids: set[str]) -> None:
        """Have a watch on each of these nodes, so that none has to start when it is needed."""
        for node_id in node_ids - self._watches.keys():
            self._watches[node_id] = on_node(node_id)

    def kill_node(self, node_id: str) -> None:
        """End a node as its power would, for a drill; returns at once."""
        self._watches[node_id].kill_node.remote()

    def hear(self, worker: str, pulse: Pulse, at_s: float) -> None:
        """Take a pulse in."""
        _, still_since_s, before = self._heard.get(worker, (at_s, at_s, None))
        moved = before is None or before.progress != pulse.progress
        self._heard[worker] = at_s, at_s if moved else still_since_s, pulse

    def is_silent(self, worker: str) -> bool:
        """Say whether a worker was heard before, and is heard no longer."""
        return worker in self._heard and self._silent_s(worker) > SILENT_S

    def step_took(self, step_s: float) -> None:
        """Take a committed step's time in."""
        self._steps_s.append(step_s)

    def forget(self, worker: str) -> None:
        """Watch over a worker no longer."""
        self._heard.pop(worker, None)
        self._looked_at.discard(worker)

    def look(self, world: Mapping[str, Place]) -> list[Hung]:
        """Have suspects of the world looked at, and give those of whom it is known by now that they hang."""
        for suspect in suspects(self._as_heard(world), median_step_s=self._median_step_s, hang_after_s=self._hang_after_s):
            if suspect.worker not in self._looked_at:
                self._looked_at.add(suspect.worker)
                arguments = suspect, world[suspect.worker], self._silent_s(suspect.worker)
                threading.Thread(target=self._examine, args=arguments, daemon=True).start()
        found = []
        while not self._found.empty():
            found.append(self._found.get())
        return found

    @property
    def _median_step_s(self) -> float:
        return statistics.median(self._steps_s) if self._steps_s else 0.0

    def _silent_s(self, worker: str) -> float:
        return time.monotonic() - self._heard[worker][0]

    def _as_heard(self, world: Mapping[str, Place]) -> list[Heard]:
        now_s = time.monotonic()
        return [
            Heard(worker=worker, pulse=pulse, silent_s=now_s - at_s, still_s=at_s - still_since_s)
            for worker, (at_s, still_since_s, pulse) in self._heard.items()
            if worker in world
        ]

    def _examine(self, suspect: Suspect, place: Place, silent_s: float) -> None:
        watch = self._watches[place.node_id]
        try:
            condition = _ask(watch, "condition", place.pid)
            hangs = condition == "stopped" or suspect.certain or (condition == "still" and silent_s > STILL_S)
            if hangs:
                stack = _ask(watch, "stack", place.pid)
                process = "its process is stopped" if condition == "stopped" else suspect.reason
                # Before Ray tells of the death, which would be taken for a crash.
                self._found.put(Hung(worker=suspect.worker, cause=f"it hung: {process}", stack=stack))
                _ask(watch, "kill", place.pid)
        except (ray.exceptions.GetTimeoutError, *GONE):
            self._found.put(Hung(worker=suspect.worker, cause="its node is silent", kind="node"))
        finally:
            self._looked_at.discard(suspect.worker)


def _ask(watch: Any, method: str, pid: int) -> Any:
    asked: Any = getattr(watch, method)
    return asked(pid) if isinstance(watch, Watch) else ray.get(asked.remote(pid), timeout=NODE_TIMEOUT_S)
