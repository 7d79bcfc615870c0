"""How many replicas a service needs: enough for the requests that come, and few soon after."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

TARGET = 0.7  # the share of its time in which a replica may be at work: requests come in bursts
IDLE_S = 60.0
HOLD_S = 10.0
EPSILON = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a service has to do.

    ``rate_s`` requests a second, ``num_open`` that wait or are being answered, ``cost_s`` seconds of a replica for each of them
    (None while it is not known), ``idle_s`` since the last one came (None before the first).
    """

    rate_s: float
    num_open: int
    cost_s: float | None
    idle_s: float | None


def replicas_needed(load: Load, *, least: int, most: int, slo_s: float) -> int:
    """Say how many replicas answer what comes, and what has come within ``slo_s``.

    By the utilization law (rate times cost is how many replicas are at work at once). Who was asked in the last minute
    keeps one.
    """
    if not load.num_open and (load.idle_s is None or load.idle_s > IDLE_S):
        return least
    cost_s = load.cost_s or 0.0
    at_work = max(load.rate_s * cost_s / TARGET, load.num_open * cost_s / slo_s)
    return min(most, max(least, 1, math.ceil(at_work - EPSILON)))


class Steady:
    """More at once, less only when that was enough for ``HOLD_S``."""

    def __init__(self) -> None:
        self._needed: deque[tuple[float, int]] = deque()

    def take(self, now_s: float, needed: int) -> int:
        """Give the most that was needed of late."""
        self._needed.append((now_s, needed))
        while self._needed[0][0] < now_s - HOLD_S:
            self._needed.popleft()
        return max(count for _, count in self._needed)
