"""How many replicas a service needs: enough for the requests that come, and few soon after."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, fields

TARGET = 0.7  # the share of its time in which a replica may be at work: requests come in bursts
EPSILON = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """Sums over calls of replicas: their number, their requests, their seconds, the squares and products of these."""

    num: float = 0.0
    requests: float = 0.0
    busy_s: float = 0.0
    requests_squared: float = 0.0
    requests_busy_s: float = 0.0

    def with_call(self, requests: int, busy_s: float) -> Calls:
        """Count a call."""
        return self.plus(
            Calls(num=1, requests=requests, busy_s=busy_s, requests_squared=requests**2, requests_busy_s=requests * busy_s)
        )

    def plus(self, other: Calls, *, times: float = 1.0) -> Calls:
        """Add sums, or take them away."""
        return Calls(**{each.name: getattr(self, each.name) + times * getattr(other, each.name) for each in fields(self)})

    @property
    def cost(self) -> Cost | None:
        """Fit a line through the calls (least squares); None while there are none."""
        if self.num < 1:
            return None
        mean_requests, mean_s = self.requests / self.num, self.busy_s / self.num
        spread = self.requests_squared / self.num - mean_requests**2
        # Of calls that are all alike it is not known what a larger one would take: as much as its requests one by one.
        most_s = mean_s / mean_requests
        slope_s = (self.requests_busy_s / self.num - mean_requests * mean_s) / spread if spread > EPSILON else most_s
        request_s = min(max(slope_s, 0.0), most_s)
        return Cost(call_s=mean_s - request_s * mean_requests, request_s=request_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a call takes of a replica's time: ``call_s`` whatever it holds, and ``request_s`` for each request."""

    call_s: float
    request_s: float

    def capacity_s(self, *, batch_size: int, slo_s: float) -> float:
        """Give how many requests a second a replica can answer within ``slo_s``.

        A request waits for the call that goes on and is answered with the next: two calls have to fit. Infinite for
        what costs nothing.
        """
        room_s = slo_s / 2 - self.call_s
        batch = min(batch_size, max(1, int(room_s / self.request_s + EPSILON) if self.request_s else batch_size))
        call_s = self.call_s + batch * self.request_s
        return batch / call_s if call_s else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a service has to do.

    ``rate_s`` requests a second, ``num_open`` that wait or are being answered, ``idle_s`` since the last one came (None
    before the first).
    """

    rate_s: float
    num_open: int
    idle_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long replicas are kept that are not needed: all that were of late, and the last one."""

    hold_s: float
    last_s: float


COLD = Patience(hold_s=10.0, last_s=60.0)
"""Where another one would have to be built: seconds to minutes."""
WARM = Patience(hold_s=0.1, last_s=0.0)
"""Where another one is built, and waits for a slot: as many GPU seconds as it costs to change hands."""


def replicas_needed(load: Load, *, capacity_s: float, least: int, most: int, slo_s: float, patience: Patience) -> int:
    """Say how many replicas answer what comes, and what has come within ``slo_s``.

    By the utilization law: so many are at work at once as what comes is of what one can answer (``capacity_s``, requests a
    second), and what waits is answered in time by as many as that takes, of which none is without a request. Where a request
    takes longer than replicas are held for, those that are open say how many are needed, and not those that came. Who was
    asked of late keeps one.
    """
    if not load.num_open and (load.idle_s is None or load.idle_s > patience.last_s):
        return least
    for_rate, for_open = load.rate_s / capacity_s / TARGET, load.num_open / capacity_s / slo_s
    outlast = capacity_s * patience.hold_s < 1
    at_work = min(load.num_open, max(for_rate, for_open)) if outlast else max(for_rate, min(load.num_open, for_open))
    return min(most, max(least, 1, math.ceil(at_work - EPSILON)))


class Steady:
    """More at once, less only when that was enough for a while."""

    def __init__(self) -> None:
        self._needed: deque[tuple[float, int]] = deque()

    def take(self, now_s: float, needed: int, patience: Patience) -> int:
        """Give the most that was needed of late."""
        self._needed.append((now_s, needed))
        while self._needed[0][0] < now_s - patience.hold_s:
            self._needed.popleft()
        return max(count for _, count in self._needed)
