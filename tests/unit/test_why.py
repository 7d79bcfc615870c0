"""What a run waits for, in words."""

from __future__ import annotations

from raykit.engine.why import why
from raykit.events import RunEnded, RunStarted, RunWaited, SlotsHeld, SlotsLent
from raykit.render.why import holder_rows, lease_rows, why_words
from raykit.spec import TaskSpec, TrainSpec
from tests.unit.test_lending import party

HELD = tuple(SlotsHeld(holder=f"slot {number}", num_cpus=1, num_gpus=0) for number in (1, 2))
LOW = party(TrainSpec(name="low", workers=(1, 4), priority="low"), RunStarted(), *HELD)


def asked(*parties, run="high", free=(0.0, 0.0), whole=(3.0, 0.0)):
    view = why(parties, run, free=free, whole=whole)
    return why_words(view), list(holder_rows(view))


def test_who_waits_is_told_what_is_lacking_who_holds_it_and_who_gives_it():
    same = party(TaskSpec(name="same"), RunStarted(), SlotsHeld(holder="cell", num_cpus=1, num_gpus=0), priority="high")
    words, rows = asked(LOW, same, party(TaskSpec(name="high"), priority="high"))
    assert words == "high (high priority) lacks 1 CPU slot; free: none."
    assert rows == [
        ("low", "training", "low", "2 CPU slots", "1 CPU slot at its next commit"),
        ("same", "training", "high", "1 CPU slot", "when it ends"),
    ]


def test_a_training_that_could_spare_too_little_says_so():
    _, rows = asked(LOW, party(TaskSpec(name="high", num_cpus=2), priority="high"), whole=(2.0, 0.0))
    assert rows == [("low", "training", "low", "2 CPU slots", "cannot spare enough before it ends")]


def test_a_training_at_its_least_keeps_it():
    least = party(TrainSpec(name="low", workers=(2, 2), priority="low"), RunStarted(), *HELD)
    _, rows = asked(least, party(TaskSpec(name="high"), priority="high"), whole=(2.0, 0.0))
    assert rows == [("low", "training", "low", "2 CPU slots", "cannot spare enough before it ends")]


def test_what_others_in_ray_hold_is_told_too():
    words, rows = asked(party(TaskSpec(name="high", num_gpus=1)), free=(1.0, 0.5), whole=(4.0, 1.0))
    assert words == "high (low priority) lacks 1 CPU slot and 1 GPU slot; free: 1 CPU slot and 0.5 GPU slots."
    assert rows == [("other work in Ray", "", "", "3 CPU slots and 0.5 GPU slots", "not known")]


def test_a_training_that_would_start_with_fewer_ranks_is_told_how_many():
    waiting = party(TrainSpec(name="high", workers=(4, 8)), RunWaited(reason="4 slots are asked, 1 are free"), HELD[0])
    words, _ = asked(LOW, waiting, free=(1.0, 0.0))
    assert words.endswith("With fewer ranks it would start now: %ray resize high 2")
    words, _ = asked(LOW, party(TrainSpec(name="high", workers=(4, 8))))
    assert "resize" not in words


def test_leases_are_of_those_that_go_on():
    lent = party(TrainSpec(name="low", workers=(1, 4)), RunStarted(), *HELD, SlotsLent(borrower="high", max_workers=1))
    waiting = party(TaskSpec(name="high", num_cpus=2), RunWaited(reason="2 CPUs are asked, 0 are free"), priority="high")
    over = party(TaskSpec(name="over"), RunEnded(state="done"))
    assert list(lease_rows(each.view for each in (lent, waiting, over))) == [
        ("low", "training", "low", "2 CPU slots", "", "high"),
        ("high", "training", "high", "none", "2 CPUs are asked, 0 are free", ""),
    ]


def test_a_run_that_has_all_lacks_nothing():
    whole = party(TrainSpec(name="low", workers=(2, 2)), RunStarted(), *HELD)
    assert asked(whole, run="low") == ("low is running; it lacks nothing.", [])
