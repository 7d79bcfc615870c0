"""Answers why a run waits, from the runs' views and what Ray has free."""

from __future__ import annotations

import math
from collections.abc import Sequence

from raykit.engine.arbiter import Party, lacks_of, lenders, wants
from raykit.policy.lending import EPSILON, Lender, Loan, Slots, loans
from raykit.spec import TrainSpec
from raykit.views.why import HolderView, WhyView

NOW = math.inf  # who waits, waits long enough to be spoken of


def why(parties: Sequence[Party], run: str, *, free: Slots, whole: Slots) -> WhyView:
    """Say what a run lacks and who holds it.

    Args:
        parties: the runs that go on, the oldest first.
        run: one of them.
        free: what Ray has to give.
        whole: what the cluster has.
    """
    asker = next(party for party in parties if party.view.name == run)
    lends = {lender.run: lender for lender in lenders(parties)}
    given = loans(list(lends.values()), wants(parties, NOW), free)
    holders = [_holder(party, lends.get(party.view.name), given.get(party.view.name), run) for party in parties if party.num_held]
    lacks = lacks_of(asker)
    others = [max(0.0, whole[kind] - free[kind] - sum(party.held[kind] for party in parties)) for kind in (0, 1)]
    return WhyView(
        run=run,
        run_kind=asker.view.run_kind,
        state=asker.view.state,
        priority=asker.view.priority,
        reason=asker.view.reason,
        lacks_cpus=max(0.0, lacks[0]),
        lacks_gpus=max(0.0, lacks[1]),
        free_cpus=free[0],
        free_gpus=free[1],
        others_cpus=others[0],
        others_gpus=others[1],
        holders=tuple(holder for holder in holders if holder.run != run),
        fits_workers=_fits(asker, free),
    )


def _holder(party: Party, lender: Lender | None, loan: Loan | None, asker: str) -> HolderView:
    view = party.view
    count = max(0, lender.num_held - loan.most) if lender and loan and loan.borrower == asker else 0
    steps_s = view.work.pace(view.updated_at_unix_s) if view.run_kind == "training" and view.updated_at_unix_s else None
    return HolderView(
        run=view.name,
        run_kind=view.run_kind,
        priority=view.priority,
        num_cpus=party.held[0],
        num_gpus=party.held[1],
        lends=lender is not None,
        gives_cpus=count * lender.slot[0] if lender else 0.0,
        gives_gpus=count * lender.slot[1] if lender else 0.0,
        step_s=1 / steps_s if steps_s else None,
        left_s=view.left_s,
    )


def _fits(asker: Party, free: Slots) -> int | None:
    """Give how many ranks of a training that waits there is room for, if there is for some."""
    spec = asker.spec
    if not isinstance(spec, TrainSpec) or asker.has_started:
        return None
    slot = spec.cpus_per_worker * spec.group, spec.gpus_per_worker * spec.group
    held_and_free = [held + more for held, more in zip(asker.held, free, strict=True)]
    fits = [math.floor(room / each + EPSILON) for room, each in zip(held_and_free, slot, strict=True) if each]
    replicas = min([*fits, spec.max_replicas])
    return replicas * spec.group if 0 < replicas < spec.min_replicas else None
