"""Which ranks of a training world hang: told from what they say of themselves, and from their silence.

A rank is suspected when it is not where the others wait for it. Whether a suspected process is stopped or only slow is
then looked at from outside, on its node (``engine/training/watch``): a busy process may be late, never evicted for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

LEAST_LIMIT_S = 1.0
LIMIT_STEPS = 4  # median steps that the others wait before a silent rank is looked at, so that it is out after five
STILL_S = 15.0  # a rank that says it is alive and does nothing may be waiting for a disk: three looks, 5 s apart

Phase = Literal["starting", "computing", "waiting", "idle"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """What a worker says of itself, four times a second, from another thread than its training.

    ``waiting`` is in a collective that others have to enter, ``idle`` between two worlds, ``computing`` anything else
    after the first step began. ``progress`` is another value whenever the training thread has done something.
    """

    phase: Phase
    phase_s: float
    progress: tuple[int, int]
    busy_with: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A rank's last pulse, how long ago it came, and for how long ``progress`` has stayed as it is."""

    worker: str
    pulse: Pulse
    silent_s: float
    still_s: float

    @property
    def waits_s(self) -> float:
        """How long it has waited for others, as far as is known: it is not taken to wait on while it is silent."""
        return self.pulse.phase_s if self.pulse.phase == "waiting" else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A rank that others wait for. ``certain`` needs no look from outside."""

    worker: str
    reason: str
    certain: bool


def limit_s(median_step_s: float) -> float:
    """Give how long the others wait before a rank is suspected."""
    return max(LEAST_LIMIT_S, LIMIT_STEPS * median_step_s)


def suspects(world: Sequence[Heard], *, median_step_s: float, hang_after_s: float) -> list[Suspect]:
    """Say whom to look at. Silence is judged for every rank; all else only where another rank waits and says so."""
    limit = limit_s(median_step_s)
    found = [
        Suspect(worker=rank.worker, reason=f"silent for {rank.silent_s:.1f} s", certain=False)
        for rank in world
        if rank.silent_s > limit
    ]
    fresh = [rank for rank in world if rank.silent_s <= limit]
    waited_s = max((rank.waits_s for rank in fresh), default=0.0)
    if waited_s <= limit:
        return found
    for rank in fresh:
        if rank.pulse.phase != "computing":
            continue
        if waited_s > hang_after_s:
            found.append(Suspect(worker=rank.worker, reason=f"the others have waited {waited_s:.0f} s for it", certain=True))
        elif rank.still_s > STILL_S and not rank.pulse.busy_with:
            reason = f"at one place without CPU time for {rank.still_s:.0f} s while the others wait"
            found.append(Suspect(worker=rank.worker, reason=reason, certain=True))
    return found
