"""The step of the fold that concerns what a run's processes use."""

from __future__ import annotations

from raykit import events as ev
from raykit.views.values import RunView, Step, changed


def _use_sampled(view: RunView, event: ev.UseSampled, _: float) -> RunView:
    uses = {use.worker: use for use in event.uses}
    stages = tuple(
        changed(
            stage,
            replicas=tuple(changed(each, use=uses[each.replica]) if each.replica in uses else each for each in stage.replicas),
        )
        for stage in view.stages
    )
    ranks = tuple(changed(each, use=uses[each.worker]) if each.worker in uses else each for each in view.ranks)
    return changed(view, stages=stages, ranks=ranks)


STEPS: dict[type, Step] = {ev.UseSampled: _use_sampled}
