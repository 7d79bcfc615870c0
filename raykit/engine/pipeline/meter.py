"""What a pipeline's stages cost and yield, and how their replicas spent the last seconds."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Literal

from raykit.engine.pipeline.calls import Report, Use, Waited
from raykit.events import StageWord
from raykit.policy.balance import Cost
from raykit.policy.bottleneck import StageTimes, words

LATE = 0.8  # what remains of the seconds before at each look
SPENT = ("busy", "starved", "blocked")
LOOKS = 16  # at what calls used, over which means are taken


class Meter:
    """Stages go by their place."""

    def __init__(self, num_stages: int) -> None:
        self._costs = [(Cost(), Cost()) for _ in range(num_stages)]  # of first calls, and of warm ones
        self._passed = [(0, 0) for _ in range(num_stages)]
        self._uses: list[deque[Use]] = [deque(maxlen=LOOKS) for _ in range(num_stages)]
        self._storing = (0.0, 0.0)  # seconds in the sink, of seconds
        self._spent_s = [dict.fromkeys(SPENT, 0.0) for _ in range(num_stages)]

    def add(self, place: int, report: Report) -> None:
        """Count a call."""
        self._costs[place][report.is_warm].add(report.rows_in, report.taken_s)
        rows_in, rows_out = self._passed[place]
        self._passed[place] = rows_in + report.rows_in, rows_out + report.rows_out
        if report.use is not None and report.is_warm:
            self._uses[place].append(report.use)

    def forget(self, place: int) -> None:
        """Measure a stage's costs anew: it works otherwise now."""
        self._costs[place] = (Cost(), Cost())
        self._uses[place].clear()

    def use(self, place: int) -> Use | None:
        """Give what the last calls used that were looked at, all together."""
        uses = self._uses[place]
        if not uses:
            return None
        return Use(
            taken_s=sum(use.taken_s for use in uses),
            cpu_s=sum(use.cpu_s for use in uses),
            wanted_s=sum(use.wanted_s for use in uses),
            peak_bytes=max(use.peak_bytes for use in uses),
        )

    def store(self, seconds: float, passed_s: float) -> None:
        """Count the time that the host spent in the sink."""
        stored_s, all_s = self._storing
        self._storing = (stored_s * LATE + seconds, all_s * LATE + passed_s)

    @property
    def store_share(self) -> float:
        """Share of the last seconds that the host spent in the sink: it gives no work out meanwhile."""
        stored_s, all_s = self._storing
        return stored_s / all_s if all_s else 0.0

    def spend(self, place: int, why: Waited | Literal["busy"], seconds: float) -> None:
        """Count time of a stage's replicas."""
        self._spent_s[place][why] += seconds

    def busy_share(self, place: int) -> float:
        """Share of the last seconds in which a stage's replicas worked."""
        spent_s = self._spent_s[place]
        return spent_s["busy"] / (sum(spent_s.values()) or 1.0)

    def row_s(self, place: int) -> float | None:
        """Give the seconds of a replica for a row of this stage, None before its first call is over."""
        first, warm = self._costs[place]
        return first.per_row_s if warm.per_row_s is None else warm.per_row_s

    def ratio(self, place: int) -> float:
        """Give the rows that come to a stage for each of the source's."""
        return math.prod(rows_out / rows_in for rows_in, rows_out in self._passed[:place] if rows_in)

    def source_row_s(self, place: int) -> float | None:
        """Give the seconds of a replica of this stage for a row of the source."""
        row_s = self.row_s(place)
        return None if row_s is None else row_s * self.ratio(place)

    def source_rows_through(self) -> float:
        """Give the source rows that the last stage has taken."""
        last = len(self._passed) - 1
        return self._passed[last][0] / max(self.ratio(last), 1e-9)

    def words(self, waiting: Sequence[int]) -> Sequence[StageWord | Literal[""]]:
        """Give the word of each stage; none before all are known.

        Args:
            waiting: the rows that wait before each stage.
        """
        times = []
        for place, spent_s in enumerate(self._spent_s):
            whole_s = sum(spent_s.values()) or 1.0
            busy, starved, blocked = (spent_s[why] / whole_s for why in SPENT)
            times.append(StageTimes(busy=busy, starved=starved, blocked=blocked, has_waiting=waiting[place] > 0))
            self._spent_s[place] = {why: seconds * LATE for why, seconds in spent_s.items()}
        is_known = all(self.row_s(place) is not None for place in range(len(times)))
        return words(times) if is_known else [""] * len(times)
