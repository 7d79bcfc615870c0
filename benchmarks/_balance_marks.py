"""The emulated stage, the marks that it leaves on disk, and the rates that are read from them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from _balance_pipelines import SLOWER, Shape, Stage

GRID = 200
LEAST_WINDOW_S = 10.0
WINDOW_BATCHES = 6
STEP_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Took:
    """A batch of a stage."""

    begun_s: float
    ended_s: float
    num_rows: int


class Emulated:
    """A stage that sleeps as long as its rows cost, and marks its start and each batch in a file of its process."""

    def __init__(self, stage: Stage, folder: str) -> None:
        self._stage, self._folder = stage, Path(folder)
        self._file = (self._folder / f"{stage.name}.{os.getpid()}.marks").open("a", buffering=1)
        self._file.write(f"up {time.time()}\n")

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        begun_s = time.time()
        num_rows = len(next(iter(batch.values())))
        slow = SLOWER if (self._folder / f"{self._stage.name}.slow").exists() else 1
        time.sleep(self._stage.cost_s * slow * num_rows / self._stage.batch)
        self._file.write(f"took {begun_s} {time.time()} {num_rows}\n")
        if self._stage.gives < 1:
            return {name: column[:: round(1 / self._stage.gives)] for name, column in batch.items()}
        return {name: np.repeat(column, round(self._stage.gives)) for name, column in batch.items()}


class Timeline:
    """What the stages of a trial marked."""

    def __init__(self, shape: Shape, folder: Path) -> None:
        self._shape = shape
        self.ups: dict[str, list[float]] = {}
        self.took: dict[str, list[Took]] = {}
        for stage in shape.stages:
            lines = [line.split() for file in folder.glob(f"{stage.name}.*.marks") for line in _whole_lines(file)]
            self.ups[stage.name] = sorted(float(line[1]) for line in lines if line[0] == "up")
            batches = [line for line in lines if line[0] == "took"]
            took = [Took(begun_s=float(begun), ended_s=float(ended), num_rows=int(rows)) for _, begun, ended, rows in batches]
            self.took[stage.name] = sorted(took, key=lambda each: each.ended_s)

    @property
    def begun_s(self) -> float | None:
        """When each stage had its first replica."""
        return max(ups[0] for ups in self.ups.values()) if all(self.ups.values()) else None

    def up_s(self, count: int) -> float | None:
        """When so many replicas had started."""
        ups = sorted(up for ups in self.ups.values() for up in ups)
        return ups[count - 1] if len(ups) >= count else None

    def dry_s(self) -> float:
        """When the first stage took its last rows."""
        return max(each.begun_s for each in self.took[self._shape.stages[0].name])

    def rate(self, begin_s: float, end_s: float) -> float:
        """Give the source rows a second that leave the last stage.

        It is the slope of the least-squares line through the count of rows over time: batches come in bursts, and a
        count between two moments is wrong by up to one of k bursts, the line by 1/k².
        """
        return float(self._rates(np.array([begin_s]), end_s - begin_s, self._shape.stages[-1:])[0])

    def reached_s(self, since_s: float, until_s: float, wanted: float) -> float | None:
        """Give the begin of the first window in which every stage is so fast.

        Every stage, and not only the last: what waited before it comes out faster than the pipeline is.
        """
        width_s = max(LEAST_WINDOW_S, WINDOW_BATCHES * self._shape.slowest_s)
        begins = np.arange(since_s, until_s - width_s, STEP_S)
        fine = self._rates(begins, width_s, self._shape.stages) >= wanted
        return float(begins[int(np.argmax(fine))]) if fine.any() else None

    def _rates(self, begins: np.ndarray, width_s: float, stages: tuple[Stage, ...]) -> np.ndarray:
        """Give the slowest stage's rate in each window, in source rows a second."""
        ratios = dict(zip((stage.name for stage in self._shape.stages), _reaching(self._shape), strict=False))
        offsets = np.linspace(0, width_s, GRID)
        found = []
        for stage in stages:
            counted = self._count(stage.name, (begins[:, None] + offsets).ravel()).reshape(len(begins), GRID)
            centred = offsets - offsets.mean()
            found.append(counted @ centred / (centred @ centred) / ratios[stage.name])
        return np.min(found, axis=0) if found else np.empty(0)

    def _count(self, stage: str, moments: np.ndarray) -> np.ndarray:
        """Count a stage's rows up to each moment; those of a batch are spread over the time that it took."""
        edges = sorted(edge for each in self.took[stage] for edge in _edges(each))
        if not edges:
            return np.zeros(len(moments))
        times, slopes = np.array([edge[0] for edge in edges]), np.cumsum([edge[1] for edge in edges])
        counts = np.concatenate([[0.0], np.cumsum(slopes[:-1] * np.diff(times))])
        return np.interp(moments, times, counts)


def _edges(took: Took) -> Iterator[tuple[float, float]]:
    slope = took.num_rows / max(took.ended_s - took.begun_s, 1e-6)
    yield took.begun_s, slope
    yield took.ended_s, -slope


def _reaching(shape: Shape) -> Iterator[float]:
    return accumulate((stage.gives for stage in shape.stages), lambda ratio, gives: ratio * gives, initial=1.0)


def _whole_lines(file: Path) -> list[str]:
    return file.read_text().rpartition("\n")[0].splitlines()
