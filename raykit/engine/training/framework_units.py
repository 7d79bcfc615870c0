"""Steps of a loop that a framework has: it asks for the batches of a step, and has passes made that can be made again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raykit.engine.training.batches import Plan
from raykit.engine.training.loop_state import LoopState

Pass = Callable[[Any], Any]
"""Runs forward and backward on a batch."""


class FrameworkUnits:
    """The units of a framework's loop, of one or several batches each.

    A plain loop's body cannot be called again, so that a step that a loss broke costs it another turn. A framework calls a
    method for each pass. Passes that a loss broke are made again before the method returns, with the batches divided anew:
    the framework sees one step, and counts it once.
    """

    def __init__(self, loop: LoopState, plan: Plan) -> None:
        """Store."""
        self._loop, self._plan = loop, plan
        self._rows: list[Any] = []
        self._passes: list[Pass] = []
        self.batches: list[Any] = []
        """This rank's parts of the unit's batches, as they are divided now."""

    @property
    def position(self) -> int:
        """How many batches are in the model."""
        return self._loop.progress.num_batches

    @property
    def is_closed(self) -> bool:
        """Whether the unit is committed, so that the next batch begins another."""
        return not self._loop.is_open or self._loop.has_stepped or self._loop.was_passed_over

    def enter(self) -> bool:
        """End the unit and be in a world, with the state of its ranks; blocking. Return False where the run is to end."""
        self.end()
        return self._loop.enter_world()

    def begin(self, num_batches: int) -> list[Any]:
        """Begin a unit; return this rank's parts of up to so many batches, none where there are no more."""
        if not self.enter():
            return []
        self._loop.open_unit()
        self._rows, self._passes = [], []
        return [batch for _ in range(num_batches) if (batch := self.add()) is not None]

    def add(self) -> Any | None:
        """Add a batch to the unit; return this rank's part of it, None where there are no more."""
        rows = self._plan.source.batch(self.position + len(self._rows))
        if rows is None:
            return None
        self._rows.append(rows)
        self._divide()
        return self.batches[-1]

    def run(self, number: int, run: Pass) -> Any:
        """Make the pass over the unit's batch of that number, and again, with those before it, where a peer is lost.

        Returns:
            What ``run`` returned last.
        """
        del self._passes[number:]
        self._passes.append(run)
        result = self._run(number)
        while self._loop.is_void and self._begin_again():
            for each in range(number + 1):
                result = self._run(each)
                if self._loop.is_void:
                    break
        return result

    def end(self) -> None:
        """End the unit: its steps are taken."""
        if self._loop.is_open and self._rows:
            rows, self._rows = self._rows, []
            self._loop.end_unit(is_last=self._plan.source.batch(self.position + len(rows)) is None)

    def _run(self, number: int) -> Any:
        self._loop.begin_pass(self._plan, self._rows[number], self.position + number)
        return self._passes[number](self.batches[number])

    def _begin_again(self) -> bool:
        """Be in the next world; return False where the unit is not to be redone: others had committed it, or the run ends."""
        before = self.position
        self._loop.discard()
        if not self._loop.enter_world() or self.position != before:
            self._loop.pass_over()
            return False
        self._loop.open_unit()
        self._divide()
        return True

    def _divide(self) -> None:
        self.batches = [self._loop.take(self._plan, rows, self.position + number) for number, rows in enumerate(self._rows)]
