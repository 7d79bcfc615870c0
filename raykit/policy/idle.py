"""When a cluster that nobody uses is given back: pure, so that who pays can read the rule.

What is not known counts as use: a cluster is never taken from somebody because a look at it failed.
"""

from __future__ import annotations

from dataclasses import dataclass

from raykit.decisions import SuspendCluster, WarnIdle

WARN_SHARE = 0.5  # of the limit: a person who comes back from lunch still finds the warning before the end


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What was seen of a cluster's use: runs that go on, and slots held by anybody's code (None: it could not be told)."""

    num_runs: int
    num_slots_held: float | None

    @property
    def is_known_idle(self) -> bool:
        return self.num_runs == 0 and self.num_slots_held == 0


def idle_since(before_unix_s: float | None, use: Use, *, now_unix_s: float) -> float | None:
    """Give the moment since which nothing has been used, or None while something is, or may be."""
    if not use.is_known_idle:
        return None
    return now_unix_s if before_unix_s is None else before_unix_s


def decide(since_unix_s: float | None, *, idle_s: float, now_unix_s: float) -> WarnIdle | SuspendCluster | None:
    """Say what to do about a cluster that has been idle since a moment; None is to leave it alone."""
    if since_unix_s is None:
        return None
    idle_for_s = now_unix_s - since_unix_s
    if idle_for_s >= idle_s:
        return SuspendCluster(reason=f"nothing ran for {_words(idle_s)} (--idle)")
    if idle_for_s >= idle_s * WARN_SHARE:
        return WarnIdle(left_s=idle_s - idle_for_s)
    return None


def _words(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"  # noqa: PLR2004  (small enough to count)
