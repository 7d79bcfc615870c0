"""Why a run waits, or has less than it asks for: what is free, who holds the rest, and what would come of it."""

from __future__ import annotations

from dataclasses import dataclass

from raykit.events import RunKind
from raykit.spec.priority import Priority
from raykit.views.values import RunState


@dataclass(frozen=True, slots=True, kw_only=True)
class HolderView:
    """A run that holds slots, and how many of them it is asked back for the other's sake.

    ``step_s`` is the time of a step, ``left_s`` that to its end; None where it is not known.
    """

    run: str
    run_kind: RunKind
    priority: Priority
    num_cpus: float
    num_gpus: float
    lends: bool
    gives_cpus: float
    gives_gpus: float
    step_s: float | None
    left_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WhyView:
    """What a run lacks. ``fits_workers``: with so many ranks it would start now; None where that is no way out."""

    run: str
    run_kind: RunKind
    state: RunState
    priority: Priority
    reason: str
    lacks_cpus: float
    lacks_gpus: float
    free_cpus: float
    free_gpus: float
    others_cpus: float
    others_gpus: float
    holders: tuple[HolderView, ...]
    fits_workers: int | None

    @property
    def lacks(self) -> bool:
        """Whether it has less than it asks for."""
        return bool(self.lacks_cpus or self.lacks_gpus)
