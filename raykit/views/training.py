"""The steps of the fold that concern a training's workers, world and steps."""

from __future__ import annotations

from dataclasses import replace

from raykit import events as ev
from raykit.views.values import CardView, RankView, RunView, Step

MAX_CURVE_POINTS = 400


def _worker_started(view: RunView, event: ev.WorkerStarted, _: float) -> RunView:
    rank = RankView(worker=event.worker, pid=event.pid, node=event.node, device=event.device)
    return replace(view, ranks=(*(each for each in view.ranks if each.worker != event.worker), rank))


def _worker_ready(view: RunView, event: ev.WorkerReady, _: float) -> RunView:
    ranks = tuple(replace(each, ready=True) if each.worker == event.worker else each for each in view.ranks)
    return replace(view, ranks=ranks)


def _world_broken(view: RunView, _: ev.WorldBroken, __: float) -> RunView:
    return replace(view, state="recovering") if view.state == "running" else view


def _world_formed(view: RunView, event: ev.WorldFormed, _: float) -> RunView:
    place = {worker: rank for rank, worker in enumerate(event.workers)}
    ranks = tuple(replace(each, rank=None if each.lost else place.get(each.worker)) for each in view.ranks)
    return replace(view, ranks=ranks, world_size=len(event.workers), generation=event.generation)


def _step_committed(view: RunView, event: ev.StepCommitted, at_unix_s: float) -> RunView:
    curve, stride = view.curve, view.curve_stride
    if "loss" in event.metrics and (not curve or event.step - curve[-1][0] >= stride):
        curve = (*curve, (event.step, event.metrics["loss"]))
        if len(curve) > MAX_CURVE_POINTS:
            curve, stride = curve[1::2], stride * 2
    return replace(
        view,
        state=view.state if view.state == "stopping" else "running",
        step=event.step,
        epoch=event.epoch,
        rows=view.rows if event.num_rows is None else event.num_rows,
        total_steps=event.total_steps,
        rate=view.rate if event.num_rows is None else view.rate.at(at_unix_s, event.num_rows),
        metrics=tuple(event.metrics.items()),
        curve=curve,
        curve_stride=stride,
    )


def _worker_busy(view: RunView, event: ev.WorkerBusy, _: float) -> RunView:
    ranks = tuple(replace(each, busy_with=event.what) if each.worker == event.worker else each for each in view.ranks)
    return replace(view, ranks=ranks)


def _worker_lost(view: RunView, event: ev.WorkerLost, _: float) -> RunView:
    ranks = tuple(replace(each, lost=True, rank=None, busy_with="") if each.worker == event.worker else each for each in view.ranks)
    recovering = event.rank is not None and view.state == "running"
    return replace(view, ranks=ranks, state="recovering" if recovering else view.state)


def _worker_ended(view: RunView, event: ev.WorkerEnded, _: float) -> RunView:
    return replace(view, ranks=tuple(each for each in view.ranks if each.worker != event.worker))


def _resized(view: RunView, event: ev.Resized, _: float) -> RunView:
    return replace(view, resized_to=(event.min_workers, event.max_workers))


def _recovered(view: RunView, event: ev.Recovered, at_unix_s: float) -> RunView:
    found = "not known" if event.detected_after_s is None else f"after {event.detected_after_s:.2f} s"
    after = event.recovered_after_s
    next_commit = (
        [] if after is None else [("next commit", f"step {event.step_before + 1}, {after:.2f} s after the loss was known")]
    )
    redone = "not known what was in flight" if event.steps_redone is None else f"{event.steps_redone} step in flight redone"
    facts = (
        *([("cause", event.cause)] if event.cause else []),
        ("found", found),
        ("lost", f"{event.steps_lost} committed steps; {redone}"),
        ("world", f"{event.world_before} → {event.world_after}"),
        ("done", event.remedy),
        *next_commit,
        *([("stood at", event.stack)] if event.stack else []),
    )
    card = CardView(at_unix_s=at_unix_s, title=event.what, good=event.steps_lost == 0, facts=facts)
    return replace(view, cards=(*view.cards, card))


def _checkpoint_saved(view: RunView, event: ev.CheckpointSaved, _: float) -> RunView:
    return replace(view, checkpoint_step=event.step, checkpoint_path=event.path)


def _checkpoint_failed(view: RunView, event: ev.CheckpointFailed, at_unix_s: float) -> RunView:
    title = "Checkpoints cannot be written"
    facts = (("newest try", f"step {event.step}, to {event.path}"), ("reason", event.reason))
    card = CardView(at_unix_s=at_unix_s, title=title, good=False, facts=facts)
    return replace(view, cards=(*(each for each in view.cards if each.title != title), card))


STEPS: dict[type, Step] = {
    ev.WorkerStarted: _worker_started,
    ev.WorkerReady: _worker_ready,
    ev.WorldFormed: _world_formed,
    ev.WorldBroken: _world_broken,
    ev.StepCommitted: _step_committed,
    ev.WorkerBusy: _worker_busy,
    ev.WorkerLost: _worker_lost,
    ev.WorkerEnded: _worker_ended,
    ev.Resized: _resized,
    ev.Recovered: _recovered,
    ev.CheckpointSaved: _checkpoint_saved,
    ev.CheckpointFailed: _checkpoint_failed,
}
