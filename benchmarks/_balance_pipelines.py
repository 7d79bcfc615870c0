"""Random emulated pipelines, and what is possible for each: the integer bound, and an even split."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

MOST_REPLICAS = 12
STAGES = (2, 5)
COSTS_S = (0.05, 5.0)
QUICK_COSTS_S = (0.05, 0.5)  # where a stage slows tenfold a batch takes 5 s at most, too
BATCHES = (4, 8, 16)
GIVES = (1.0, 1.0, 1.0, 2.0, 0.5)
SLOWER = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stage that sleeps ``cost_s`` for each batch of ``batch`` rows, and gives so many rows for each row."""

    name: str
    cost_s: float
    batch: int
    gives: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A pipeline. ``slows`` is the name of the stage that becomes ten times slower, where one does."""

    number: int
    stages: tuple[Stage, ...]
    slows: str = ""

    @property
    def works_s(self) -> list[float]:
        """Replica seconds that one row of the source costs in each stage."""
        reaching = itertools.accumulate((stage.gives for stage in self.stages), lambda ratio, gives: ratio * gives, initial=1.0)
        return [stage.cost_s / stage.batch * ratio for stage, ratio in zip(self.stages, reaching, strict=False)]

    @property
    def slowest_s(self) -> float:
        """The longest batch."""
        return max(stage.cost_s for stage in self.stages)

    @property
    def slowed(self) -> Shape:
        """The same when the stage has become slow."""
        slow = (replace(each, cost_s=each.cost_s * SLOWER) if each.name == self.slows else each for each in self.stages)
        return replace(self, stages=tuple(slow))

    @property
    def counts(self) -> list[int]:
        """The best numbers of replicas: the next one goes to the slowest stage."""
        counts = [1] * len(self.stages)
        for _ in range(MOST_REPLICAS - len(counts)):
            slowest = min(range(len(counts)), key=lambda place: counts[place] / self.works_s[place])
            counts[slowest] += 1
        return counts

    @property
    def bound(self) -> float:
        """Source rows a second with the best whole numbers of replicas."""
        return rate(self.counts, self.works_s)

    @property
    def even(self) -> int:
        """Replicas of each stage in an even split."""
        return MOST_REPLICAS // len(self.stages)

    @property
    def even_bound(self) -> float:
        return rate([self.even] * len(self.stages), self.works_s)

    def rows(self, seconds: float) -> int:
        """Give the source rows of so many seconds at the bound, in whole batches of every stage."""
        whole = 4 * max(BATCHES)
        return math.ceil(self.bound * seconds / whole) * whole


def rate(counts: Sequence[int], works_s: Sequence[float]) -> float:
    return min(count / work_s for count, work_s in zip(counts, works_s, strict=True))


def random_pipelines(seed: int) -> Iterator[Shape]:
    """Give pipelines of mixed lengths, costs (log-uniform), batches, and rows given for each row."""
    source = random.Random(seed)
    for number in itertools.count():
        stages = tuple(
            Stage(
                name=f"stage{place}",
                cost_s=round(_cost_s(source, COSTS_S), 3),
                batch=source.choice(BATCHES),
                gives=source.choice(GIVES),
            )
            for place in range(source.randint(*STAGES))
        )
        yield _checked(Shape(number=number, stages=(*stages[:-1], replace(stages[-1], gives=1.0))))


def changing_pipelines(seed: int) -> Iterator[Shape]:
    """Give pipelines of short batches of one size, of which the quickest stage becomes ten times slower."""
    source = random.Random(seed)
    for number in itertools.count():
        stages = tuple(
            Stage(name=f"stage{place}", cost_s=round(_cost_s(source, QUICK_COSTS_S), 3), batch=8)
            for place in range(source.randint(*STAGES))
        )
        yield _checked(Shape(number=number, stages=stages, slows=min(stages, key=lambda stage: stage.cost_s).name))


def _cost_s(source: random.Random, least_most: tuple[float, float]) -> float:
    return math.exp(source.uniform(*map(math.log, least_most)))


def _checked(shape: Shape) -> Shape:
    """Compare the greedy bound with that of every way to share the replicas."""
    cuts = itertools.combinations(range(1, MOST_REPLICAS), len(shape.stages) - 1)
    ways = ([after - before for before, after in itertools.pairwise((0, *cut, MOST_REPLICAS))] for cut in cuts)
    assert math.isclose(shape.bound, max(rate(way, shape.works_s) for way in ways)), shape
    return shape
