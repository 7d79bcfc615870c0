"""The steps of the fold that concern a pipeline's stages and their replicas."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from raykit import events as ev
from raykit.views.values import AdviceView, CardView, RateView, ReplicaView, RunView, Samples, StageView, Step, changed

MAX_GONE = 50  # of a stage's replicas; of the others only the sums are kept


def _on_stage(view: RunView, name: str, change: Callable[[StageView], StageView]) -> RunView:
    stages = view.stages
    for place, stage in enumerate(stages):
        if stage.name == name:
            return changed(view, stages=(*stages[:place], change(stage), *stages[place + 1 :]))
    return view


def _replica_started(view: RunView, event: ev.ReplicaStarted, _: float) -> RunView:
    replica = ReplicaView(replica=event.replica, pid=event.pid, node=event.node, start_s=event.start_s)
    return _on_stage(view, event.stage, lambda stage: changed(stage, replicas=(*stage.replicas, replica)))


def _replica_gone(view: RunView, event: ev.ReplicaEnded | ev.ReplicaLost, _: float) -> RunView:
    def close(replica: ReplicaView) -> ReplicaView:
        return changed(replica, gone=True) if replica.replica == event.replica else replica

    return _on_stage(view, event.stage, lambda stage: _without_earlier(changed(stage, replicas=tuple(map(close, stage.replicas)))))


def _without_earlier(stage: StageView) -> StageView:
    """Keep the newest of the replicas that are gone, and of the others the sums."""
    too_old = tuple(replica for replica in stage.replicas if replica.gone)[:-MAX_GONE]
    if not too_old:
        return stage
    earlier = changed(stage, replicas=too_old)
    replicas = tuple(replica for replica in stage.replicas if replica not in too_old)
    return changed(stage, replicas=replicas, earlier_s=(earlier.busy_s, earlier.starved_s, earlier.blocked_s))


def _replica_lost(view: RunView, event: ev.ReplicaLost, at_unix_s: float) -> RunView:
    facts = (("why", event.cause), ("rows taken again", f"{event.num_rows_again:,}"))
    card = CardView(at_unix_s=at_unix_s, title=f"{event.replica} was lost", good=True, facts=facts)
    return changed(_replica_gone(view, event, at_unix_s), cards=(*view.cards, card))


def _span_restarted(view: RunView, event: ev.SpanRestarted, at_unix_s: float) -> RunView:
    facts = (("why", event.reason), ("part of the source", str(event.span)))
    card = CardView(at_unix_s=at_unix_s, title="Rows were lost on their way and are made again", good=True, facts=facts)
    return changed(view, cards=(*view.cards, card))


def _cpus_shared(view: RunView, event: ev.CpusShared, at_unix_s: float) -> RunView:
    facts = (
        ("why", f"{event.num_stages} stages ask for more than the {event.num_cpus:g} CPUs of the cluster"),
        ("reserved", f"{event.share:.0%} of the CPUs that each stage asks for"),
    )
    return changed(view, cards=(*view.cards, CardView(at_unix_s=at_unix_s, title="Stages share CPUs", good=True, facts=facts)))


def _source_restarted(view: RunView, event: ev.SourceRestarted, at_unix_s: float) -> RunView:
    facts = (("why", event.reason), ("rows given before", f"{event.num_rows:,}"))
    card = CardView(at_unix_s=at_unix_s, title="The source's process was lost and is begun again", good=True, facts=facts)
    return changed(view, cards=(*view.cards, card))


def _batch_halved(view: RunView, event: ev.BatchHalved, at_unix_s: float) -> RunView:
    facts = (("replica", event.replica), ("rows a call now", str(event.num_rows)))
    card = CardView(at_unix_s=at_unix_s, title=f"A batch of {event.stage} did not fit the GPU", good=True, facts=facts)
    return changed(view, cards=(*view.cards, card))


def _rows_quarantined(view: RunView, event: ev.RowsQuarantined, at_unix_s: float) -> RunView:
    """One card a stage: that of its latest bad row. How many there are stands in the stage's lane."""
    title = f"{event.stage} put rows aside"
    card = CardView(at_unix_s=at_unix_s, title=title, good=False, facts=(("latest", event.error),))
    return changed(view, cards=(*(each for each in view.cards if each.title != title), card))


def _sampled(view: RunView, samples: Sequence[tuple[float, ev.StageSampled | ev.ReplicaSampled]]) -> RunView:
    """Take samples of stages and of replicas, which come mixed."""
    rates, work = {stage.name: stage.rate for stage in view.stages}, view.work
    first = next(iter(rates), None)
    of_stages: dict[str, ev.StageSampled] = {}
    of_replicas: dict[str, dict[str, ev.ReplicaSampled]] = {}
    for at_unix_s, event in samples:
        if isinstance(event, ev.ReplicaSampled):
            of_replicas.setdefault(event.stage, {})[event.replica] = event
        elif event.stage in rates:
            of_stages[event.stage] = event
            rates[event.stage] = rates[event.stage].at(at_unix_s, event.rows_out)
            if event.stage == first:
                work = work.at(at_unix_s, event.rows_in or 0)
    stages = tuple(
        _with_samples(stage, rates[stage.name], of_stages.get(stage.name), of_replicas.get(stage.name, {})) for stage in view.stages
    )
    return changed(view, stages=stages, work=work)


def _with_samples(
    stage: StageView, rate: RateView, sample: ev.StageSampled | None, of_replicas: Mapping[str, ev.ReplicaSampled]
) -> StageView:
    if of_replicas:
        stage = changed(stage, replicas=tuple(_counted(each, of_replicas.get(each.replica)) for each in stage.replicas))
    if sample is None:
        return stage
    return changed(
        stage,
        num_replicas=sample.num_replicas,
        rows_waiting=sample.rows_waiting,
        rows_in=sample.rows_in,
        rows_out=sample.rows_out,
        num_bad=sample.num_bad,
        word=sample.word,
        num_failed_tasks=sample.num_failed_tasks,
        num_cpus=sample.num_cpus,
        num_gpus=sample.num_gpus,
        held_by=sample.held_by,
        rate=rate,
    )


def _counted(replica: ReplicaView, sample: ev.ReplicaSampled | None) -> ReplicaView:
    if sample is None:
        return replica
    return changed(
        replica,
        rows_in=sample.rows_in,
        rows_out=sample.rows_out,
        busy_s=sample.busy_s,
        starved_s=sample.starved_s,
        blocked_s=sample.blocked_s,
    )


def _advised(view: RunView, event: ev.Advised, _: float) -> RunView:
    advice = AdviceView(changes=event.changes, rows_s=event.rows_s, expected_rows_s=event.expected_rows_s, reason=event.reason)
    return changed(view, advice=advice)


def _advice_withdrawn(view: RunView, _: ev.AdviceWithdrawn, __: float) -> RunView:
    return changed(view, advice=None)


def _advice_applied(view: RunView, _: ev.AdviceApplied, at_unix_s: float) -> RunView:
    if view.advice is None:
        return view
    applied = changed(view.advice, applied=True)
    return changed(view.marked(at_unix_s, "advice was applied"), advice=applied, changes=view.changes + view.advice.changes)


def _advice_measured(view: RunView, event: ev.AdviceMeasured, at_unix_s: float) -> RunView:
    if view.advice is None:
        return view
    facts = (
        ("expected", f"{view.advice.expected_rows_s:.3g} source rows/s, from {view.advice.rows_s:.3g}"),
        ("measured", f"{event.rows_s:.3g} source rows/s"),
    )
    card = CardView(at_unix_s=at_unix_s, title="Advice was applied", good=event.rows_s >= view.advice.rows_s, facts=facts)
    return changed(view, advice=changed(view.advice, measured_rows_s=event.rows_s), cards=(*view.cards, card))


def _source_counted(view: RunView, event: ev.SourceCounted, _: float) -> RunView:
    return changed(view, source_rows=event.num_rows)


STEPS: dict[type, Step] = {
    ev.Advised: _advised,
    ev.AdviceWithdrawn: _advice_withdrawn,
    ev.AdviceApplied: _advice_applied,
    ev.AdviceMeasured: _advice_measured,
    ev.ReplicaStarted: _replica_started,
    ev.ReplicaEnded: _replica_gone,
    ev.ReplicaLost: _replica_lost,
    ev.CpusShared: _cpus_shared,
    ev.SpanRestarted: _span_restarted,
    ev.SourceRestarted: _source_restarted,
    ev.BatchHalved: _batch_halved,
    ev.RowsQuarantined: _rows_quarantined,
    ev.SourceCounted: _source_counted,
}

SAMPLES: dict[type, Samples] = {ev.ReplicaSampled: _sampled, ev.StageSampled: _sampled}
