"""The steps of the fold that concern a training's workers, world and steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from raykit import events as ev
from raykit.views.values import CardView, LoanView, RankView, RunState, RunView, Samples, SeriesView, Step, changed

MAX_CURVES = 8
MAX_LOST = 20  # of those who are gone; all are in the cards and in the log
CANNOT_WRITE, COULD_NOT_WRITE = "Checkpoints cannot be written", "Checkpoints could not be written"
NOTHING = SeriesView()
AT_WORK: tuple[RunState, ...] = ("running", "resizing")


def _at_work(view: RunView) -> RunState:
    """Say whether the world has the size that was asked for last."""
    least, most = view.resized_to or (view.world_size, view.world_size)
    return "running" if least <= view.world_size <= most else "resizing"


def _worker_started(view: RunView, event: ev.WorkerStarted, _: float) -> RunView:
    rank = RankView(
        worker=event.worker,
        pid=event.pid,
        node=event.node,
        device=event.device,
        num_cpus=event.num_cpus,
        num_gpus=event.num_gpus,
    )
    return changed(view, ranks=(*(each for each in view.ranks if each.worker != event.worker), rank))


def _worker_ready(view: RunView, event: ev.WorkerReady, _: float) -> RunView:
    ranks = tuple(changed(each, ready=True) if each.worker == event.worker else each for each in view.ranks)
    return changed(view, ranks=ranks)


def _world_broken(view: RunView, _: ev.WorldBroken, __: float) -> RunView:
    return changed(view, state="recovering") if view.state in AT_WORK else view


def _world_formed(view: RunView, event: ev.WorldFormed, _: float) -> RunView:
    place = {worker: rank for rank, worker in enumerate(event.workers)}
    ranks = tuple(changed(each, rank=None if each.lost else place.get(each.worker)) for each in view.ranks)
    return changed(view, ranks=ranks, world_size=len(event.workers), generation=event.generation)


def _worker_aside(view: RunView, event: ev.WorkerAside, _: float) -> RunView:
    return changed(view, ranks=tuple(changed(each, rank=None) if each.worker == event.worker else each for each in view.ranks))


def _steps_committed(view: RunView, commits: Sequence[tuple[float, ev.StepCommitted]]) -> RunView:
    rows, rate, work, curves = view.rows, view.rate, view.work, dict(view.curves)
    for at_unix_s, event in commits:
        work = work.at(at_unix_s, event.step)
        if event.num_rows is not None:
            rows, rate = event.num_rows, rate.at(at_unix_s, event.num_rows)
        for name, value in event.metrics.items():
            if name in curves or len(curves) < MAX_CURVES:
                curves[name] = curves.get(name, NOTHING).at(at_unix_s, value)
    _, newest = commits[-1]
    return changed(
        view,
        state=view.state if view.state == "stopping" else _at_work(view),
        step=newest.step,
        epoch=newest.epoch,
        rows=rows,
        total_steps=newest.total_steps,
        rate=rate,
        work=work,
        metrics=tuple(newest.metrics.items()) or view.metrics,
        curves=tuple(curves.items()),
    )


def _steps_measured(view: RunView, measured: Sequence[tuple[float, ev.StepMeasured]]) -> RunView:
    curves = dict(view.curves)
    for at_unix_s, event in measured:
        for name, value in event.metrics.items():
            if name in curves or len(curves) < MAX_CURVES:
                curves[name] = curves.get(name, NOTHING).at(at_unix_s, value)
    return changed(view, metrics=tuple(measured[-1][1].metrics.items()), curves=tuple(curves.items()))


def _worker_busy(view: RunView, event: ev.WorkerBusy, _: float) -> RunView:
    ranks = tuple(changed(each, busy_with=event.what) if each.worker == event.worker else each for each in view.ranks)
    return changed(view, ranks=ranks)


def _worker_lost(view: RunView, event: ev.WorkerLost, _: float) -> RunView:
    ranks = tuple(
        changed(each, lost=True, rank=None, busy_with="", use=None) if each.worker == event.worker else each for each in view.ranks
    )
    too_old = [each for each in ranks if each.lost][:-MAX_LOST]
    ranks = tuple(each for each in ranks if each not in too_old)
    recovering = event.rank is not None and view.state in AT_WORK
    return changed(view, ranks=ranks, state="recovering" if recovering else view.state)


def _worker_ended(view: RunView, event: ev.WorkerEnded, _: float) -> RunView:
    return changed(view, ranks=tuple(each for each in view.ranks if each.worker != event.worker))


def _resized(view: RunView, event: ev.Resized, at_unix_s: float) -> RunView:
    least, most = event.min_workers, event.max_workers
    words = f"{least if least == most else f'{least} to {most}'} ranks were asked"
    view = changed(view.marked(at_unix_s, words), resized_to=(least, most))
    return changed(view, state=_at_work(view)) if view.state in AT_WORK else view


def _slots_lent(view: RunView, event: ev.SlotsLent, at_unix_s: float) -> RunView:
    if event.max_workers is None:
        words, loan = f"{event.borrower} has what it needs", None
    else:
        words, loan = f"{event.borrower} comes first", LoanView(borrower=event.borrower, max_workers=event.max_workers)
    return changed(view if view.loan and loan else view.marked(at_unix_s, words), loan=loan)


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
    return changed(view, cards=(*view.cards, card))


def _checkpoint_saved(view: RunView, event: ev.CheckpointSaved, _: float) -> RunView:
    again = ("written again", f"step {event.step}")
    cards = tuple(
        replace(each, title=COULD_NOT_WRITE, good=True, facts=(*each.facts, again)) if each.title == CANNOT_WRITE else each
        for each in view.cards
    )
    return changed(view, checkpoint_step=event.step, checkpoint_path=event.path, cards=cards)


def _checkpoint_failed(view: RunView, event: ev.CheckpointFailed, at_unix_s: float) -> RunView:
    facts = (("newest try", f"step {event.step}, to {event.path}"), ("reason", event.reason))
    card = CardView(at_unix_s=at_unix_s, title=CANNOT_WRITE, good=False, facts=facts)
    return changed(view, cards=(*(each for each in view.cards if each.title != CANNOT_WRITE), card))


STEPS: dict[type, Step] = {
    ev.WorkerStarted: _worker_started,
    ev.WorkerReady: _worker_ready,
    ev.WorldFormed: _world_formed,
    ev.WorldBroken: _world_broken,
    ev.WorkerAside: _worker_aside,
    ev.WorkerBusy: _worker_busy,
    ev.WorkerLost: _worker_lost,
    ev.WorkerEnded: _worker_ended,
    ev.Resized: _resized,
    ev.SlotsLent: _slots_lent,
    ev.Recovered: _recovered,
    ev.CheckpointSaved: _checkpoint_saved,
    ev.CheckpointFailed: _checkpoint_failed,
}

SAMPLES: dict[type, Samples] = {ev.StepCommitted: _steps_committed, ev.StepMeasured: _steps_measured}
