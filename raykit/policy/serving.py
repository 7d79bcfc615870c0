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
    """How long replicas are kept that are not needed: all that were of late, and the last one.

    Where it is given what it costs to give one back and have it again (``change_s``), the first is learned, and ``hold_s`` is
    for as long as little is known.
    """

    hold_s: float
    last_s: float
    change_s: float | None = None


COLD = Patience(hold_s=10.0, last_s=60.0)
"""Where another one would have to be built: seconds to minutes."""
WARM = Patience(hold_s=0.1, last_s=0.0, change_s=0.15)
"""Where another one is built, and waits for a slot: while that changes hands (in about 0.1 s: ``benchmarks/sharing.py``) a GPU
is nobody's, and a request waits."""

FEW_PAUSES, MOST_PAUSES = 8, 32


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
    """More at once, less only when that was enough for a while.

    For how long is learned from the last pauses in which a replica was not needed: it is what would have cost least in them
    (to rent or to buy, as Krishnan, Long and Vitter do it in "Adaptive Disk Spindown via Optimal Rent-to-Buy in Probabilistic
    Environments", 1995).
    """

    def __init__(self) -> None:
        self._needed, self._at_s = 0, 0.0
        self._unneeded_since_s: dict[int, float] = {}
        self._pauses_s: deque[float] = deque(maxlen=MOST_PAUSES)
        self._learned_s: float | None = None

    def take(self, now_s: float, needed: int, patience: Patience) -> int:
        """Give how many to have: those that are needed, and those that were of late."""
        for number in range(needed + 1, self._needed + 1):
            self._unneeded_since_s[number] = self._at_s
        self._needed, self._at_s = needed, now_s
        change_s = patience.change_s or 0.0
        hold_s = self._learned_s if change_s and self._learned_s is not None else patience.hold_s
        for number, since_s in list(self._unneeded_since_s.items()):
            pause_s = now_s - since_s
            if number <= needed or pause_s > max(hold_s, change_s):
                del self._unneeded_since_s[number]
                if change_s:
                    self._learn(pause_s, change_s)
        return max((needed, *(number for number, since_s in self._unneeded_since_s.items() if now_s - since_s <= hold_s)))

    def _learn(self, pause_s: float, change_s: float) -> None:
        """Count a pause that is over, or has lasted for longer than it can be worth to keep a replica."""
        self._pauses_s.append(pause_s)
        if len(self._pauses_s) >= FEW_PAUSES:
            holds_s = [0.0, *sorted(each for each in self._pauses_s if each < change_s)]
            self._learned_s = min(
                holds_s, key=lambda hold_s: sum(each if each <= hold_s else hold_s + change_s for each in self._pauses_s)
            )
