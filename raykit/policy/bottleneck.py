"""Which of four words fits a stage: starved, bottleneck, buffered or balanced.

After the saturation-aware scheduler of cosmos-xenna: a stage is not slow because its queue is long (its consumer may be the
cause), nor because it is busy alone. The bottleneck is the last stage that has work waiting while what comes after it
starves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raykit.events import StageWord

IDLE = 0.15  # of the time; less is between two calls


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimes:
    """Shares of the last seconds of a stage's replicas, and whether rows wait before it."""

    busy: float
    starved: float
    blocked: float
    has_waiting: bool


def words(stages: Sequence[StageTimes]) -> tuple[StageWord, ...]:
    """Give the word of each stage, in their order."""
    said: list[StageWord] = []
    for stage in stages:
        if stage.blocked > IDLE and stage.blocked >= stage.starved:
            said.append("buffered")
        elif stage.starved > IDLE:
            said.append("starved")
        else:
            said.append("balanced")
    for place in reversed(range(len(stages))):
        after_starves = all(word == "starved" for word in said[place + 1 :])
        if said[place] == "balanced" and after_starves and (stages[place].has_waiting or "buffered" in said[:place]):
            said[place] = "bottleneck"
            break
    return tuple(said)
