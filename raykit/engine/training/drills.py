"""Failures on purpose, of a training run: kept until their time has come, struck, and remembered for the verdict."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from raykit.commands import Drill


@dataclass(frozen=True, slots=True, kw_only=True)
class Struck:
    """A drill that was carried out on a worker, and when."""

    action: str
    at_s: float


class Drills:
    """The drills of one run. Their delays count from the first committed step, if it is still to come."""

    def __init__(self) -> None:
        self._waiting: list[tuple[float, Drill]] = []
        self._working_since_s: float | None = None
        self._struck: dict[str, Struck] = {}

    def add(self, drill: Drill) -> None:
        """Keep a drill for later."""
        since_s = math.inf if self._working_since_s is None else time.monotonic()
        self._waiting.append((since_s + drill.after_s, drill))

    def begin(self, at_s: float) -> None:
        """Know that the first step is committed; later calls change nothing."""
        if self._working_since_s is None:
            self._working_since_s = at_s
            self._waiting = [(at_s + drill.after_s, drill) for _, drill in self._waiting]

    def due(self) -> Drill | None:
        """Give the next drill whose time has come, once."""
        for place, (at_s, drill) in enumerate(self._waiting):
            if time.monotonic() >= at_s:
                del self._waiting[place]
                return drill
        return None

    def strike(self, drill: Drill, workers: tuple[str, ...]) -> None:
        """Remember whom a drill strikes now."""
        for worker in workers:
            self._struck[worker] = Struck(action=drill.action, at_s=time.monotonic())

    def struck(self, worker: str) -> Struck | None:
        """Give the drill that struck a worker."""
        return self._struck.get(worker)

    @property
    def waiting(self) -> list[Drill]:
        """Those that were not carried out."""
        return [drill for _, drill in self._waiting]
