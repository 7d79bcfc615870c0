"""When a cluster that is paid for is given back: pure, so that who pays can read the rule.

Nobody has used it for too long, or it has cost what it may. What is not known counts as use: a cluster is never taken from
somebody because a look at it failed.
"""

from __future__ import annotations

from dataclasses import dataclass

from raykit.decisions import SuspendCluster, WarnSuspend

WARN_SHARE = 0.5  # of the limit: a person who comes back from lunch still finds the warning before the end
WARN_COST_SHARE = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What was seen of a cluster's use. None could not be told.

    ``num_runs`` go on, ``num_slots_held`` are held by anybody's code, ``gpu_utilization`` is that of its busiest GPU, from
    0 to 1.
    """

    num_runs: int
    num_slots_held: float | None
    gpu_utilization: float | None = None

    def idle_words(self, low_utilization: float | None = None) -> str:
        """Say by what it is idle; nothing is said where it is not, or not known to be.

        GPUs below ``low_utilization`` count as idle though somebody holds them.
        """
        if self.num_runs == 0 and self.num_slots_held == 0:
            return "nothing ran"
        if low_utilization is not None and self.gpu_utilization is not None and self.gpu_utilization < low_utilization:
            return f"no GPU was used {100 * low_utilization:g} %"
        return ""


def idle_since(before_unix_s: float | None, idle_words: str, *, now_unix_s: float) -> float | None:
    """Give the moment since which a cluster has been idle, or None while it is not, or may not be."""
    if not idle_words:
        return None
    return now_unix_s if before_unix_s is None else before_unix_s


def decide(since_unix_s: float | None, idle_words: str, *, idle_s: float, now_unix_s: float) -> WarnSuspend | SuspendCluster | None:
    """Say what to do about a cluster that has been idle since a moment; None is to leave it alone."""
    if since_unix_s is None:
        return None
    idle_for_s = now_unix_s - since_unix_s
    if idle_for_s >= idle_s:
        return SuspendCluster(reason=f"{idle_words} for {duration_words(idle_s)} (--idle)")
    if idle_for_s >= idle_s * WARN_SHARE:
        return WarnSuspend(left_s=idle_s - idle_for_s, reason=f"{idle_words} for {duration_words(idle_for_s)}")
    return None


def decide_on_cost(cost: float, *, budget: float, cost_per_h: float) -> WarnSuspend | SuspendCluster | None:
    """Say what to do about a cluster that has cost so much, and costs so much an hour now."""
    if cost >= budget:
        return SuspendCluster(reason=f"it has cost {cost:.2f} (--budget {budget:g})")
    if cost >= budget * WARN_COST_SHARE and cost_per_h:
        return WarnSuspend(left_s=(budget - cost) / cost_per_h * 3600, reason=f"it has cost {cost:.2f} of {budget:g}")
    return None


def duration_words(seconds: float) -> str:
    """Say how long, in seconds or in minutes."""
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"  # noqa: PLR2004  (small enough to count)
