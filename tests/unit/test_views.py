import dataclasses
import functools
import itertools
import json
import math
import typing
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raykit import events as ev
from raykit.codec import decode, encode
from raykit.decisions import StageChange
from raykit.events import Record, record_from_json, record_to_json
from raykit.policy.accounts import account
from raykit.render import to_html, to_text
from raykit.render.face import face_of
from raykit.render.text import WIDTH
from raykit.views import RunView, fold, fold_all
from raykit.views.examples import pipeline_records, training_records
from raykit.views.training import MAX_LOST
from raykit.views.values import MAX_POINTS

EVENTS = [
    ev.RunAccepted(run_kind="training", folder="/f", stages=("decode",)),
    ev.HostStarted(pid=1, attempt=1),
    ev.HostStarted(pid=2, attempt=2),
    ev.RunStarted(),
    ev.RunWaited(reason="2 slots are asked, 1 is free"),
    ev.OutputReady(name="model", file="model.pkl", num_bytes=5),
    ev.UserFailed(where="decode", error="ValueError: <b>", traceback_text="t"),
    ev.LinesPrinted(source="w1", lines=("one", "<script>alert(1)</script>"), num_dropped=3),
    ev.SlotsHeld(holder="slot 1", num_cpus=1, num_gpus=0.5),
    ev.SlotsReleased(holder="slot 1"),
    ev.ReplicaStarted(stage="decode", replica="decode-1", pid=3, node="n", start_s=0.1),
    ev.ReplicaSampled(stage="decode", replica="decode-1", rows_in=5, rows_out=9, busy_s=1.0, starved_s=2.0, blocked_s=1.0),
    ev.ReplicaEnded(stage="decode", replica="decode-1"),
    ev.ReplicaLost(stage="decode", replica="decode-1", cause="killed", num_rows_again=7),
    ev.CpusShared(share=0.66, num_stages=3, num_cpus=2.0),
    ev.SpanRestarted(span=3, reason="ObjectLostError"),
    ev.SourceRestarted(num_rows=1200, reason="ActorDiedError"),
    ev.BatchHalved(stage="decode", replica="decode-1", num_rows=16),
    ev.RowsQuarantined(stage="decode", num_rows=1, error="ValueError: <b>"),
    ev.StageSampled(stage="decode", num_replicas=1, rows_waiting=4, rows_in=6, rows_out=10, num_bad=1, word="starved"),
    ev.Advised(
        changes=(StageChange(stage="decode", min_replicas=1, max_replicas=4),), rows_s=2.0, expected_rows_s=7.5, reason="it is slow"
    ),
    ev.AdviceWithdrawn(),
    ev.AdviceApplied(),
    ev.AdviceMeasured(rows_s=7.0),
    ev.SourceCounted(num_rows=6),
    ev.WorkerStarted(worker="w1", pid=4, node="n", device="cpu"),
    ev.WorkerStarted(worker="w2", pid=5, node="n", device="cpu"),
    ev.WorkerReady(worker="w1"),
    ev.WorldFormed(generation=1, workers=("w1", "w2"), step=0),
    ev.StepCommitted(step=1, epoch=0, num_rows=32, total_steps=10, metrics={"loss": 0.5}),
    ev.StepMeasured(step=1, epoch=0, num_rows=32, metrics={"loss": 0.5}),
    ev.WorkerBusy(worker="w1", what="evaluate"),
    ev.WorkerAside(worker="w1", generation=1),
    ev.WorkerLost(worker="w2", rank=1, cause="killed"),
    ev.WorldBroken(worker="w1", generation=1, reason="reset"),
    ev.WorkerEnded(worker="w1"),
    ev.NodeSampled(node="n", num_cpus=1.5, memory_used_bytes=1, memory_bytes=2, gpus=(ev.GpuUse(gpu="0", users=("r w1",)),)),
    ev.CostCounted(session="s", cost=1.5),
    ev.UseSampled(
        node="n",
        uses=(
            ev.ProcessUse(worker="w1", num_cpus=0.5, memory_bytes=3, num_gpus=0.9, gpu_memory_bytes=4),
            ev.ProcessUse(worker="decode-1", gpu_fault="GPU 0: GPU is lost"),
        ),
    ),
    ev.Resized(min_workers=1, max_workers=3),
    ev.SlotsLent(borrower="high", max_workers=1),
    ev.SlotsLent(borrower="high", max_workers=None),
    ev.ServiceOpened(url="http://127.0.0.1:1/", slo_s=0.2),
    ev.ReplicasWanted(count=2),
    ev.UpdateAsked(version=2),
    ev.ServiceUpdated(version=2, slo_s=0.5, priority="high"),
    ev.UpdateRefused(version=3, where="Greeter", error="ValueError: no weights", traceback_text=""),
    ev.RequestsSampled(
        rate_s=12.5, p50_s=0.1, p95_s=0.2, p99_s=0.3, num_waiting=4, num_open=6, num_done=90, num_failed=1, idle_s=None
    ),
    ev.Decided(decision="Form", about=("w1",)),
    ev.Recovered(
        what="rank 1 was lost",
        detected_after_s=None,
        recovered_after_s=0.2,
        world_before=2,
        world_after=1,
        step_before=1,
        steps_lost=0,
        steps_redone=1,
        remedy="1 went on",
    ),
    ev.CheckpointSaved(step=1, path="p", save_s=0.1),
    ev.CheckpointFailed(step=2, path="p", reason="the disk is full"),
    ev.StopAsked(),
    ev.DrillStarted(action="kill-worker", target="w2", pid=5),
    ev.DrillEnded(action="kill-worker", passed=True, verdict="fine"),
    ev.RunEnded(state="done"),
]


def _records(events, run="r"):
    return [Record(number=number, at_unix_s=100.0 + number, run=run, event=event) for number, event in enumerate(events, 1)]


def _after(*events):
    return fold_all(RunView(name="r"), _records(events))


def test_every_kind_of_event_is_tried_here():
    assert {type(event) for event in EVENTS} == set(typing.get_args(ev.Event))


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_is_the_same_after_the_wire(event):
    record = Record(number=7, at_unix_s=1.5, run="r", event=event)
    assert record_from_json(record_to_json(record)) == record
    assert decode(ev.Event, encode(event)) == event


@settings(deadline=None)
@given(st.lists(st.sampled_from(EVENTS), max_size=30))
@example(
    [each for each in EVENTS if isinstance(each, ev.StageSampled | ev.WorkerStarted)] * 2
)  # rates of a stage in a view whose lanes are ranks
def test_any_sequence_of_events_gives_a_view_that_can_be_shown_and_sent(events):
    view = _after(ev.RunAccepted(run_kind="training", folder="/f", stages=("decode",)), *events)
    assert to_text(view)
    assert to_html(view)
    assert dataclasses.asdict(view)


@settings(deadline=None)
@given(st.lists(st.sampled_from(EVENTS), max_size=20), st.integers(0, 20))
def test_records_that_come_twice_change_nothing(events, cut):
    records = _records(events)
    once = fold_all(RunView(name="r"), records)
    assert fold_all(fold_all(RunView(name="r"), records[:cut]), records) == once


@settings(deadline=None)
@given(st.lists(st.sampled_from(EVENTS), max_size=20))
def test_events_that_come_at_once_make_the_view_that_they_make_one_by_one(events):
    records = _records([ev.RunAccepted(run_kind="pipeline", folder="/f", stages=("decode",)), *events])
    assert fold_all(RunView(name="r"), records) == functools.reduce(fold, records, RunView(name="r"))


@pytest.mark.parametrize("records_of", [training_records, pipeline_records])
def test_a_reader_who_comes_late_sees_what_one_saw_who_was_there(records_of):
    records = records_of(1_000)
    assert fold_all(RunView(name="r"), records) == functools.reduce(fold, records, RunView(name="r"))


def test_a_stage_has_the_host_s_totals_and_its_replicas_times():
    kinds = ev.ReplicaStarted | ev.ReplicaSampled | ev.StageSampled
    stage = _after(EVENTS[0], *(event for event in EVENTS if isinstance(event, kinds))).stages[0]
    assert (stage.rows_in, stage.rows_out, stage.num_bad, stage.word) == (6, 10, 1, "starved")
    assert stage.shares == (0.25, 0.5, 0.25)


def test_a_lost_rank_makes_the_run_recovering_until_the_next_commit():
    begun = [event for event in EVENTS if isinstance(event, ev.RunAccepted | ev.RunStarted | ev.WorkerStarted)]
    step = ev.StepCommitted(step=1, epoch=0, num_rows=1, total_steps=None)
    view = _after(*begun, ev.WorldFormed(generation=1, workers=("w1", "w2"), step=0), step)
    assert view.state == "running"
    lost = Record(number=90, at_unix_s=1, run="r", event=ev.WorkerLost(worker="w2", rank=1, cause="killed"))
    view = fold(view, lost)
    assert (view.state, [rank.lost for rank in view.ranks]) == ("recovering", [False, True])
    assert fold(view, Record(number=91, at_unix_s=2, run="r", event=step)).state == "running"


def test_slots_that_nobody_released_end_with_the_run():
    view = _after(EVENTS[0], ev.SlotsHeld(holder="x", num_cpus=2, num_gpus=0), ev.RunEnded(state="failed", error="e"))
    assert view.slots[0].released_at_unix_s == view.ended_at_unix_s


def test_a_run_that_goes_on_for_long_keeps_sums_of_what_it_held_and_did():
    swap = (ev.SlotsHeld(holder="slot 1", num_cpus=1, num_gpus=2), ev.SlotsReleased(holder="slot 1"))
    view = _after(EVENTS[0], *swap * 1000, ev.SlotsHeld(holder="slot 2", num_cpus=1, num_gpus=2))
    begun_s = view.held[0].held_at_unix_s
    spent = account(view, begun_s + 3)
    assert (spent.cpu_slot_s, spent.gpu_slot_s) == (1003, 2006)
    assert len(view.slots) < 1000

    def life(number):
        name = f"decode-{number}"
        counted = ev.ReplicaSampled(stage="decode", replica=name, rows_in=1, rows_out=1, busy_s=3, starved_s=2, blocked_s=1)
        started = ev.ReplicaStarted(stage="decode", replica=name, pid=1, node="n", start_s=0)
        return started, counted, ev.ReplicaEnded(stage="decode", replica=name)

    accepted = ev.RunAccepted(run_kind="pipeline", folder="", stages=("decode",))
    (stage,) = _after(accepted, *(event for number in range(1000) for event in life(number))).stages
    assert (stage.busy_s, stage.starved_s, stage.blocked_s) == (3000, 2000, 1000)
    assert len(stage.replicas) < 1000


def test_what_a_run_held_before_it_was_resumed_is_in_its_account():
    held = (ev.SlotsHeld(holder="slot 1", num_cpus=1, num_gpus=2), ev.SlotsReleased(holder="slot 1"))
    resumed = replace(ev.RunAccepted(run_kind="training", folder="/f"), resumed=True)
    view = _after(ev.RunAccepted(run_kind="training", folder="/f"), *held, ev.RunEnded(state="stopped"), resumed, *held)
    assert account(view, view.updated_at_unix_s).gpu_slot_s == 4


def test_what_is_unknown_is_shown_as_unknown_and_never_as_zero():
    view = _after(ev.RunAccepted(run_kind="pipeline", folder="", stages=("decode",)))
    assert view.progress is None
    assert face_of(view).lanes[0].cells.count("unknown") == 6  # rate, three shares, rows waiting, word


def test_an_observed_operator_shows_what_it_holds_and_what_holds_it_in_every_face():
    names = ("1. ReadParquet->SplitBlocks(8)", "2. MapBatches(EmbedWithAVeryLongName)")
    accepted = ev.RunAccepted(run_kind="observed", folder="", stages=names)
    sample = ev.StageSampled(
        stage=names[1],
        num_replicas=3,
        rows_waiting=12,
        rows_in=1200,
        rows_out=1000,
        word="bottleneck",
        num_failed_tasks=7,
        num_cpus=2.5,
        num_gpus=1,
        held_by="task submission, task output",
    )
    view = _after(accepted, ev.RunStarted(), sample)
    facts = {"CPUs": "2.5", "GPUs": "1", "backpressure": "task submission, task output", "tasks failed": "7", "is": "bottleneck"}
    face = face_of(view)
    shown = dict(zip(face.headers, face.lanes[1].cells, strict=True))
    assert {name: shown[name] for name in facts} == facts
    assert set(face.lanes[0].cells[1:]) == {"unknown", "0"}  # no row came out, and all else is unknown
    text, html = to_text(view), to_html(view)
    assert all(len(line) <= WIDTH for line in text.splitlines())
    for name, value in facts.items():
        assert f"{name} {value}" in text
        assert f"<th>{name}</th>" in html
        assert f"<td>{value}</td>" in html


def test_everything_that_a_user_wrote_is_escaped_and_the_page_needs_no_script_or_style():
    html = to_html(_after(*EVENTS))
    assert "&lt;script&gt;" in html
    assert not any(f"<{tag}" in html for tag in ("script", "style", "svg", "b>"))
    assert "class=" not in html
    assert "style=" not in html


def test_a_run_that_loses_a_thousand_ranks_shows_those_that_are_there_and_the_newest_lost():
    def life(number):
        yield ev.WorkerStarted(worker=f"w{number}", pid=number, node="n", device="cpu")
        yield ev.WorkerLost(worker=f"w{number}", rank=None, cause="killed")

    events = [*(event for number in range(1, 1001) for event in life(number)), *itertools.islice(life(1001), 1)]
    view = fold_all(RunView(name="r"), [Record(number=n, at_unix_s=n, run="r", event=each) for n, each in enumerate(events, 1)])
    assert [rank.worker for rank in view.ranks] == [f"w{number}" for number in range(1001 - MAX_LOST, 1002)]
    assert [rank.lost for rank in view.ranks] == [True] * MAX_LOST + [False]


def test_the_recovery_card_says_what_was_lost_and_how_long_until_work_went_on():
    text = to_text(_after(*EVENTS))
    for words in ("rank 1 was lost", "found: not known", "0 committed steps", "0.20 s after the loss was known"):
        assert words in text


def test_simulated_gpus_are_labelled():
    view = _after(ev.RunAccepted(run_kind="task", folder="", simulated_gpus=True), ev.SlotsHeld(holder="x", num_cpus=1, num_gpus=1))
    assert "simulated" in to_text(view)
    assert "1 simulated GPU slots" in to_html(view)


def test_no_more_than_eight_printed_lines_stand_in_the_page_and_the_rest_is_counted():
    lines = tuple(f"line {number}" for number in range(30))
    html = to_html(_after(EVENTS[0], ev.LinesPrinted(source="w1", lines=lines, num_dropped=5)))
    assert html.count("w1 | line") == 8
    assert "27 more" in html


def test_a_long_run_keeps_a_bounded_past_that_reaches_from_its_begin_to_its_end():
    steps = [
        ev.StepCommitted(step=n, epoch=0, num_rows=n, total_steps=None, metrics={"loss": 1.0, "f1": 0.5}) for n in range(1, 3000)
    ]
    view = _after(EVENTS[0], *steps)
    assert [name for name, _ in view.curves] == ["loss", "f1"]
    for series in (*dict(view.curves).values(), view.work, view.rate.past):
        assert MAX_POINTS / 2 < len(series.points) <= MAX_POINTS
        assert series.points[0][0] < view.accepted_at_unix_s + 60
        assert series.points[-1][0] > view.updated_at_unix_s - 60


def test_a_run_that_is_to_be_larger_is_resizing_until_its_world_has_the_size_that_was_asked():
    step = ev.StepCommitted(step=1, epoch=0, num_rows=1, total_steps=None)
    begun = [EVENTS[0], ev.RunStarted(), ev.WorldFormed(generation=1, workers=("w1",), step=0), step]
    asked = [*begun, ev.Resized(min_workers=2, max_workers=3), replace(step, step=2)]
    assert _after(*asked).state == "resizing"
    formed = ev.WorldFormed(generation=2, workers=("w1", "w2"), step=2)
    assert _after(*asked, formed, replace(step, step=3)).state == "running"
    assert _after(*begun, ev.Resized(min_workers=1, max_workers=4)).state == "running"


def test_the_timeline_has_the_states_in_their_order_and_what_happened_at_its_time():
    step = ev.StepCommitted(step=1, epoch=0, num_rows=1, total_steps=None)
    lost = ev.WorkerLost(worker="w1", rank=0, cause="killed")
    recovered = next(event for event in EVENTS if isinstance(event, ev.Recovered))
    begun = [EVENTS[0], ev.RunStarted(), EVENTS[24], ev.WorldFormed(generation=1, workers=("w1",), step=0)]
    past = face_of(_after(*begun, step, lost, step, recovered, ev.StopAsked(), ev.RunEnded(state="stopped"))).past
    assert [span.state for span in past.spans] == ["starting", "running", "recovering", "running", "stopping"]
    assert all(before.to_s == after.from_s for before, after in itertools.pairwise(past.spans))
    assert [(mark.at_s, mark.words) for mark in past.marks] == [(7.0, "rank 1 was lost"), (8.0, "a stop was asked")]


def test_what_is_left_is_told_from_the_newest_pace_and_unknown_where_the_whole_is():
    def steps(total):
        return [ev.StepCommitted(step=n, epoch=0, num_rows=n, total_steps=total) for n in range(1, 51)]

    assert _after(EVENTS[0], *steps(total=60)).left_s == pytest.approx(10)
    assert _after(EVENTS[0], *steps(total=None)).left_s is None
    assert dict(face_of(_after(EVENTS[0], *steps(total=None))).figures)["left"] == "unknown"


def test_a_line_that_is_printed_again_and_again_stands_once_and_each_source_has_its_fold():
    said = [ev.LinesPrinted(source=source, lines=("warning",) * 3 + ("done",)) for source in ("w1", "w2")]
    logs = face_of(_after(EVENTS[0], *said)).past.logs
    assert [(log.source, log.lines) for log in logs] == [(source, ("warning  (3 times)", "done")) for source in ("w1", "w2")]


def test_a_checkpoint_that_could_not_be_written_is_a_bad_card_until_the_next_one_is():
    failed = [ev.CheckpointFailed(step=step, path="p", reason="full") for step in (1, 2)]
    (card,) = _after(EVENTS[0], *failed).cards
    assert (card.title, card.good) == ("Checkpoints cannot be written", False)
    (card,) = _after(EVENTS[0], *failed, ev.CheckpointSaved(step=3, path="p", save_s=0.1)).cards
    assert (card.title, card.good) == ("Checkpoints could not be written", True)
    assert ("written again", "step 3") in card.facts


def test_a_metric_that_is_no_number_leaves_a_gap_that_json_can_carry():
    losses = [1.0, math.nan, math.inf, 0.5]
    steps = [
        ev.StepCommitted(step=n, epoch=0, num_rows=n, total_steps=None, metrics={"loss": loss}) for n, loss in enumerate(losses)
    ]
    face = face_of(_after(EVENTS[0], *steps))
    assert [value for _, value in face.past.charts[0].points] == [1.0, 0.5]
    json.dumps(encode(face), allow_nan=False)


def test_an_advice_is_said_in_words_and_its_outcome_stands_beside_what_was_expected():
    advised = next(event for event in EVENTS if isinstance(event, ev.Advised))
    begun = ev.RunAccepted(run_kind="pipeline", folder="/f", stages=("decode",))
    said = "replicas of decode 1:4, since it is slow: 2 source rows/s now, 7.5 expected"
    assert said in " ".join(to_text(_after(begun, advised)).split())
    assert "advice" not in to_text(_after(begun, advised, ev.AdviceWithdrawn()))
    view = _after(begun, advised, ev.AdviceApplied(), ev.AdviceMeasured(rows_s=7.0))
    assert "advice (applied)" in " ".join(to_text(view).split())
    assert dict(view.cards[-1].facts)["measured"] == "7 source rows/s"


STAGE = (
    ev.RunAccepted(run_kind="pipeline", folder="/f", stages=("decode",)),
    ev.SlotsHeld(holder="decode-1", num_cpus=2, num_gpus=0),
    ev.SlotsHeld(holder="decode-2", num_cpus=2, num_gpus=0),
    ev.ReplicaStarted(stage="decode", replica="decode-1", pid=3, node="n", start_s=0.1),
    ev.ReplicaStarted(stage="decode", replica="decode-2", pid=4, node="m", start_s=0.1),
)


def _lane(view, place=0):
    face = face_of(view)
    return dict(zip(face.headers, face.lanes[place].cells, strict=True))


def test_a_lane_of_a_stage_shows_what_its_replicas_use_beside_what_they_hold():
    uses = (
        ev.UseSampled(node="n", uses=(ev.ProcessUse(worker="decode-1", num_cpus=1.2, memory_bytes=300_000_000),)),
        ev.UseSampled(node="m", uses=(ev.ProcessUse(worker="decode-2", num_cpus=0.9, memory_bytes=200_000_000),)),
    )
    lane = _lane(_after(*STAGE, *uses))
    assert (lane["CPUs used"], lane["memory"]) == ("2.1 of 4", "500 MB")
    lane = _lane(_after(*STAGE, *uses, ev.ReplicaEnded(stage="decode", replica="decode-2"), ev.SlotsReleased(holder="decode-2")))
    assert (lane["CPUs used"], lane["memory"]) == ("1.2 of 2", "300 MB")


def test_use_that_is_unknown_of_one_replica_is_unknown_of_its_stage():
    known = ev.UseSampled(node="n", uses=(ev.ProcessUse(worker="decode-1", num_cpus=1.2, memory_bytes=300_000_000),))
    lane = _lane(_after(*STAGE, known))
    assert (lane["CPUs used"], lane["memory"]) == ("unknown of 4", "unknown")


def test_a_lane_speaks_of_gpus_where_some_are_held_or_used():
    assert "GPUs used" not in _lane(_after(*STAGE))
    held = ev.SlotsHeld(holder="decode-3", num_cpus=1, num_gpus=1)
    assert _lane(_after(*STAGE, held))["GPU memory"] == "unknown"
    used = ev.UseSampled(
        node="n",
        uses=tuple(ev.ProcessUse(worker=f"decode-{number}", num_gpus=0.4, gpu_memory_bytes=2_000_000_000) for number in (1, 2)),
    )
    lane = _lane(_after(*STAGE, used))
    assert (lane["GPUs used"], lane["GPU memory"]) == ("0.8 of 0", "4 GB")


def test_a_lane_of_a_rank_shows_use_and_a_gpu_that_was_lost_under_it():
    told = (
        ev.RunAccepted(run_kind="training", folder="/f"),
        ev.SlotsHeld(holder="slot 1", num_cpus=1, num_gpus=1),
        ev.WorkerStarted(worker="w1", pid=4, node="n", device="cuda:0", num_cpus=1, num_gpus=1),
        ev.WorkerStarted(worker="w2", pid=5, node="n", device="cpu", num_cpus=1, num_gpus=1),
        ev.WorldFormed(generation=1, workers=("w1",), step=0),
    )
    lost = ev.ProcessUse(worker="w1", num_cpus=0.5, memory_bytes=1_000, gpu_fault="GPU 0: GPU is lost")
    idle = ev.ProcessUse(worker="w2", num_cpus=0.0, memory_bytes=1_000, num_gpus=0.0, gpu_memory_bytes=0)
    view = _after(*told, ev.UseSampled(node="n", uses=(lost, idle)))
    assert _lane(view)["CPUs used"] == "0.5 of 1"
    assert _lane(view)["GPUs used"] == "unknown of 1 (GPU 0: GPU is lost)"
    assert _lane(view, 1)["GPUs used"] == "0"  # a spare holds nothing
    view = _after(*told, ev.UseSampled(node="n", uses=(idle,)), ev.WorkerLost(worker="w2", rank=None, cause="killed"))
    assert _lane(view, 1)["memory"] == "none"


def test_a_sample_that_comes_after_the_end_makes_the_run_no_longer():
    late = ev.UseSampled(node="n", uses=(ev.ProcessUse(worker="decode-1", num_cpus=1.0),))
    ended = _after(*STAGE, ev.RunEnded(state="done"))
    after = _after(*STAGE, ev.RunEnded(state="done"), late)
    assert after == replace(ended, number=ended.number + 1)
