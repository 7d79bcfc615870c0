"""Puts into words who holds what, and why a run waits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from raykit.render.face import duration
from raykit.spec.priority import RANKS
from raykit.views import RunView
from raykit.views.why import HolderView, WhyView

LEASE_HEADERS = ("run", "kind", "priority", "holds", "waits", "gives way to")
HOLDER_HEADERS = ("run", "kind", "priority", "holds", "gives")


def why_words(view: WhyView) -> str:
    """Say what it lacks, and what would start it now."""
    if not view.lacks:
        return f"{view.run} is {view.state}; it lacks nothing."
    lacks, free = slots_words(view.lacks_cpus, view.lacks_gpus), slots_words(view.free_cpus, view.free_gpus)
    said = f"{view.run} ({view.priority} priority) lacks {lacks}; free: {free}."
    smaller = f" With fewer ranks it would start now: %ray resize {view.run} {view.fits_workers}" if view.fits_workers else ""
    return said + smaller


def holder_rows(view: WhyView) -> Iterator[tuple[str, ...]]:
    """Give who holds what it could use; what Ray has given to others than raykit's runs comes last."""
    if not view.lacks:
        return
    for holder in view.holders:
        held = slots_words(holder.num_cpus, holder.num_gpus)
        yield holder.run, holder.run_kind, holder.priority, held, _gives(holder, view)
    if view.others_cpus or view.others_gpus:
        yield "other work in Ray", "", "", slots_words(view.others_cpus, view.others_gpus), "not known"


def lease_rows(views: Iterable[RunView]) -> Iterator[tuple[str, ...]]:
    """Give what each run that goes on holds, waits for, and for whose sake it has less than it asks for."""
    for view in views:
        if not view.ended:
            held = slots_words(sum(slot.num_cpus for slot in view.held), sum(slot.num_gpus for slot in view.held))
            yield view.name, view.run_kind, view.priority, held, view.reason, view.loan.borrower if view.loan else ""


def slots_words(cpus: float, gpus: float) -> str:
    """Write slots out."""
    parts = [f"{count:g} {kind} slot{'' if count == 1 else 's'}" for count, kind in ((cpus, "CPU"), (gpus, "GPU")) if count]
    return " and ".join(parts) or "none"


def _gives(holder: HolderView, view: WhyView) -> str:
    if holder.gives_cpus or holder.gives_gpus:
        step = f" (a step takes {holder.step_s:.2g} s)" if holder.step_s else ""
        return f"{slots_words(holder.gives_cpus, holder.gives_gpus)} at its next commit{step}"
    left = "" if holder.left_s is None else f", in about {duration(holder.left_s)}"
    comes_first = holder.lends and RANKS[holder.priority] < RANKS[view.priority]
    return f"{'cannot spare enough before it ends' if comes_first else 'when it ends'}{left}"
