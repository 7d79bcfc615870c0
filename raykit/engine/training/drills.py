"""Failures on purpose, of a training run: kept until their time has come, struck, and remembered for the verdict."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from raykit.commands import Drill
from raykit.engine.run import RunContext
from raykit.engine.training.crew import Crew, Hand
from raykit.engine.training.vigil import Vigil
from raykit.events import DrillEnded, DrillStarted


@dataclass(frozen=True, slots=True, kw_only=True)
class Struck:
    """A drill that was carried out on a worker, and when."""

    action: str
    at_s: float


class Drills:
    """The drills of one run. Their delays count from the first committed step, if it is still to come."""

    def __init__(self, context: RunContext, crew: Crew, vigil: Vigil, own_node_id: str) -> None:
        self._context, self._crew, self._vigil, self._own_node_id = context, crew, vigil, own_node_id
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

    def strike(self, world: tuple[str, ...]) -> None:
        """Carry out a drill whose time has come, on this world."""
        due = [(at_s, drill) for at_s, drill in self._waiting if time.monotonic() >= at_s][:1]
        for each in due:
            self._waiting.remove(each)
            self._carry_out(each[1], world)

    def struck(self, worker: str) -> Struck | None:
        """Give the drill that struck a worker."""
        return self._struck.get(worker)

    def victims(self, drill: Drill, world: tuple[str, ...]) -> list[Hand]:
        """Give the workers that a drill would strike: the last rank, or all on the node of the last one that is elsewhere."""
        found = filter(None, map(self._crew.find, self._crew.workers_of(world)))
        hands = [hand for _, hand in found if hand.place]
        if drill.action != "kill-node":
            return hands[-1:]
        nodes = [hand.place.node_id for hand in hands if hand.place and hand.place.node_id != self._own_node_id]
        return [hand for hand in hands if hand.place and hand.place.node_id in nodes[-1:]]

    def end(self) -> None:
        """Say of those that were not carried out that it is too late."""
        for _, drill in self._waiting:
            self._context.emit(DrillEnded(action=drill.action, passed=False, verdict="the run ended before the drill began"))

    def _carry_out(self, drill: Drill, world: tuple[str, ...]) -> None:
        victims = self.victims(drill, world)
        last = victims[-1] if victims else None
        if last is None or last.place is None:
            self._context.emit(DrillEnded(action=drill.action, passed=False, verdict="there was no worker to strike"))
            return
        target = ", ".join(hand.worker for hand in victims)
        self._context.emit(DrillStarted(action=drill.action, target=target, pid=last.place.pid))
        for hand in victims:
            self._struck[hand.worker] = Struck(action=drill.action, at_s=time.monotonic())
        if drill.action == "kill-node":
            self._vigil.kill_node(last.place.node_id)
        else:
            (last.handle.hang if drill.action == "hang" else last.handle.die).remote()
