"""Events make views, one by one: the only place where a run's state is computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from raykit import events as ev
from raykit.views import pipeline, service, training, use
from raykit.views.values import (
    CardView,
    LineView,
    OutputView,
    RunState,
    RunView,
    Samples,
    SlotView,
    SpanView,
    StageView,
    Step,
    changed,
)

MAX_LINES = 200
MAX_SPANS = 200
MAX_RELEASED = 200  # slots that are held no more; of the others only the sums are kept


def fold(view: RunView, record: ev.Record) -> RunView:
    """Give the view after ``record``; a record that the view has already seen changes nothing."""
    return fold_all(view, (record,))


def fold_all(view: RunView, records: Iterable[ev.Record]) -> RunView:
    """Fold many records in their order."""
    for samples, group in groupby(_new(records, view.number), lambda record: _SAMPLES.get(type(record.event))):
        if samples:
            view = _after(view, list(group), samples)
        else:
            for record in group:
                view = _after(view, (record,), _step)
    return view


def _new(records: Iterable[ev.Record], number: int) -> Iterator[ev.Record]:
    for record in records:
        if record.number > number:
            number = record.number
            yield record


def _after(view: RunView, records: Sequence[ev.Record], take: Samples) -> RunView:
    """Give the view after records that change its state with the first of them if at all."""
    number = records[-1].number
    if view.ended and isinstance(records[-1].event, ev.UseSampled):  # it was on its way when the run ended
        return changed(view, number=number)
    after = take(view, [(record.at_unix_s, record.event) for record in records])
    spans = after.spans
    if not spans or spans[-1].state != after.state:
        spans = (*spans, SpanView(state=after.state, from_unix_s=records[0].at_unix_s))[-MAX_SPANS:]
    return changed(after, number=number, updated_at_unix_s=records[-1].at_unix_s, spans=spans)


def _step(view: RunView, events: Sequence[tuple[float, ev.Event]]) -> RunView:
    ((at_unix_s, event),) = events
    return _STEPS[type(event)](view, event, at_unix_s)


def _run_accepted(view: RunView, event: ev.RunAccepted, at_unix_s: float) -> RunView:
    fresh = RunView(name=view.name) if event.resumed else view
    unsampled = StageView(name="", num_replicas=None, rows_in=None) if event.run_kind == "observed" else StageView(name="")
    return changed(
        fresh,
        run_kind=event.run_kind,
        folder=event.folder,
        simulated_gpus=event.simulated_gpus,
        resumed=event.resumed,
        priority=event.priority,
        cards=view.cards,
        earlier_slot_s=view.slot_s(view.updated_at_unix_s or at_unix_s),
        state="starting",
        accepted_at_unix_s=at_unix_s,
        stages=tuple(changed(unsampled, name=name) for name in event.stages),
    )


def _host_started(view: RunView, event: ev.HostStarted, at_unix_s: float) -> RunView:
    if event.attempt == 1:
        return changed(view, host_attempts=1)
    facts = (("host", f"process {event.pid}, start {event.attempt}"),)
    card = CardView(at_unix_s=at_unix_s, title="The run's host was lost and came back", good=True, facts=facts)
    return changed(view, host_attempts=event.attempt, cards=(*view.cards, card))


def _run_started(view: RunView, _: ev.RunStarted, at_unix_s: float) -> RunView:
    state: RunState = view.state if view.state == "stopping" else "running"
    return changed(view, state=state, reason="", started_at_unix_s=view.started_at_unix_s or at_unix_s)


def _run_waited(view: RunView, event: ev.RunWaited, _: float) -> RunView:
    return changed(view, state="waiting", reason=event.reason)


def _run_ended(view: RunView, event: ev.RunEnded, at_unix_s: float) -> RunView:
    closed = tuple(changed(slot, released_at_unix_s=slot.released_at_unix_s or at_unix_s) for slot in view.slots)
    view = changed(view, state=event.state, ended_at_unix_s=at_unix_s, reason="", slots=closed)
    return changed(view, error=event.error or view.error, open_lines=())


def _output_ready(view: RunView, event: ev.OutputReady, _: float) -> RunView:
    output = OutputView(name=event.name, file=event.file, num_bytes=event.num_bytes)
    return changed(view, outputs=(*(each for each in view.outputs if each.name != event.name), output))


def _user_failed(view: RunView, event: ev.UserFailed, _: float) -> RunView:
    return changed(view, error=event.error, error_where=event.where, traceback_text=event.traceback_text)


def _lines_printed(view: RunView, event: ev.LinesPrinted, _: float) -> RunView:
    lines = (*view.lines, *(LineView(source=event.source, text=text) for text in event.lines))[-MAX_LINES:]
    others = (line for line in view.open_lines if line.source != event.source)
    open_lines = (*others, *(LineView(source=event.source, text=text) for text in event.open_lines))
    num_lines, num_dropped = view.num_lines + len(event.lines) + event.num_dropped, view.num_lines_dropped + event.num_dropped
    return changed(view, lines=lines, open_lines=open_lines, num_lines=num_lines, num_lines_dropped=num_dropped)


def _slots_held(view: RunView, event: ev.SlotsHeld, at_unix_s: float) -> RunView:
    slot = SlotView(holder=event.holder, num_cpus=event.num_cpus, num_gpus=event.num_gpus, held_at_unix_s=at_unix_s)
    return changed(view, slots=(*view.slots, slot))


def _slots_released(view: RunView, event: ev.SlotsReleased, at_unix_s: float) -> RunView:
    def close(slot: SlotView) -> SlotView:
        mine = slot.holder == event.holder and slot.released_at_unix_s is None
        return changed(slot, released_at_unix_s=at_unix_s) if mine else slot

    slots = tuple(close(slot) for slot in view.slots)
    too_old = [slot for slot in slots if slot.released_at_unix_s is not None][:-MAX_RELEASED]
    if not too_old:
        return changed(view, slots=slots)
    earlier_s = changed(view, slots=tuple(too_old)).slot_s(at_unix_s)
    return changed(view, slots=tuple(slot for slot in slots if slot not in too_old), earlier_slot_s=earlier_s)


def _unchanged(view: RunView, _: ev.Decided | ev.DrillStarted | ev.NodeSampled | ev.CostCounted, __: float) -> RunView:
    return view


def _stop_asked(view: RunView, _: ev.StopAsked, at_unix_s: float) -> RunView:
    if view.ended:
        return view
    return changed(view.marked(at_unix_s, "a stop was asked"), state="stopping")


def _drill_ended(view: RunView, event: ev.DrillEnded, at_unix_s: float) -> RunView:
    title = f"Drill {event.action}: {'passed' if event.passed else 'not passed'}"
    card = CardView(at_unix_s=at_unix_s, title=title, good=event.passed, facts=(("verdict", event.verdict),))
    return changed(view, cards=(*view.cards, card))


_STEPS: dict[type, Step] = {
    ev.RunAccepted: _run_accepted,
    ev.HostStarted: _host_started,
    ev.RunStarted: _run_started,
    ev.RunWaited: _run_waited,
    ev.RunEnded: _run_ended,
    ev.OutputReady: _output_ready,
    ev.UserFailed: _user_failed,
    ev.LinesPrinted: _lines_printed,
    ev.SlotsHeld: _slots_held,
    ev.SlotsReleased: _slots_released,
    ev.Decided: _unchanged,
    ev.StopAsked: _stop_asked,
    ev.DrillStarted: _unchanged,
    ev.DrillEnded: _drill_ended,
    ev.NodeSampled: _unchanged,
    ev.CostCounted: _unchanged,
    **pipeline.STEPS,
    **service.STEPS,
    **training.STEPS,
    **use.STEPS,
}

_SAMPLES: dict[type, Samples] = pipeline.SAMPLES | training.SAMPLES
