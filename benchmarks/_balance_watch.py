"""A pipeline that is watched from outside while it runs: at 95 % of its bound, and again when a stage has become slow."""

from __future__ import annotations

import time
from pathlib import Path

from _balance_marks import LEAST_WINDOW_S, WINDOW_BATCHES, Timeline
from _balance_pipelines import Shape
from _marks import Trial, until

ENOUGH = 0.95
LOOK_S = 2.0


def watched(shape: Shape, folder: Path, most_s: float) -> tuple[Trial, float]:
    """Wait for 95 % of the bound, slow the stage, and wait for 95 % of the new bound; each for up to ``most_s`` seconds.

    Gives:
        ``start_s`` and ``slowed_s``, as long as was watched where it was not reached, with ``start_reached`` and
        ``slowed_reached``; and the time at which the stage was slowed.
    """
    until(lambda: Timeline(shape, folder).begun_s is not None, look_s=0.5)
    begun_s = Timeline(shape, folder).begun_s
    assert begun_s is not None
    start_s, start_reached = _reached(shape, folder, begun_s, most_s)
    (folder / f"{shape.slows}.slow").touch()
    slowed_at_s = time.time()
    slowed_s, slowed_reached = _reached(shape.slowed, folder, slowed_at_s, most_s)
    trial = {"start_s": start_s, "start_reached": start_reached, "slowed_s": slowed_s, "slowed_reached": slowed_reached}
    return trial, slowed_at_s


def _reached(shape: Shape, folder: Path, since_s: float, most_s: float) -> tuple[float, bool]:
    """Give the seconds until the first window at 95 % of the bound begins."""
    width_s = max(LEAST_WINDOW_S, WINDOW_BATCHES * shape.slowest_s)
    while (now_s := time.time()) < since_s + most_s + width_s:
        # Rows count when their batch is over, so a window ends a batch ago.
        reached_s = Timeline(shape, folder).reached_s(since_s, now_s - shape.slowest_s, ENOUGH * shape.bound)
        if reached_s is not None:
            return reached_s - since_s, True
        time.sleep(LOOK_S)
    return most_s, False
