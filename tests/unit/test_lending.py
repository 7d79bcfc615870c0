"""Who lends slots to whom: the policy over random clusters, and what the arbiter makes of the runs' views."""

from __future__ import annotations

import random

import pytest

from raykit.commands import Lend
from raykit.engine.arbiter import Party, lend, lenders, on_the_way, wants
from raykit.events import (
    Record,
    ReplicaStarted,
    ReplicasWanted,
    Resized,
    RunAccepted,
    RunEnded,
    RunStarted,
    SlotsHeld,
    SlotsLent,
    StopAsked,
)
from raykit.policy.lending import Lender, Loan, Want, loans
from raykit.spec import PipelineSpec, ServiceSpec, StageSpec, TaskSpec, TrainSpec
from raykit.views import RunView, fold_all

CPU = (1.0, 0.0)


def lender(run: str = "low", *, priority: int = 0, num_held: int = 4, least: int = 1, slot=CPU) -> Lender:
    return Lender(run=run, priority=priority, slot=slot, num_held=num_held, least=least)


def want(num_cpus: float, num_gpus: float = 0, *, run: str = "high", priority: int = 2, needs=(1.0, 0.0), held=(0.0, 0.0)) -> Want:
    return Want(run=run, priority=priority, lacks=(num_cpus, num_gpus), needs=needs, held=held)


def test_who_waits_gets_from_a_lower_priority_what_is_not_free():
    assert loans([lender()], [want(3)], (1.0, 0.0)) == {"low": Loan(lender="low", borrower="high", most=2)}


def test_a_lender_keeps_its_least():
    assert loans([lender(least=3)], [want(8)], (0.0, 0.0))["low"].most == 3


def test_nobody_lends_to_lower_ones():
    assert loans([lender(priority=1)], [want(2, run="lower", priority=0)], (0.0, 0.0)) == {}


def test_equals_lend_until_the_other_has_as_much():
    assert loans([lender(num_held=8, priority=2)], [want(7)], (0.0, 0.0))["low"].most == 4
    assert loans([lender(num_held=8, priority=2)], [want(7, held=(3.0, 0.0))], (0.0, 0.0))["low"].most == 6
    assert loans([lender(num_held=4, priority=2)], [want(7, held=(3.0, 0.0))], (0.0, 0.0))["low"].most == 4
    assert loans([lender(num_held=3, priority=2)], [want(7, held=(3.0, 0.0))], (0.0, 0.0)) == {}
    assert loans([lender(num_held=8, priority=2)], [want(1, run="cell")], (0.0, 0.0))["low"].most == 7


def test_nothing_is_taken_for_a_run_that_could_not_use_it():
    assert loans([lender(num_held=2)], [want(2, needs=(2.0, 0.0))], (0.0, 0.0))["low"].most == 2
    assert loans([lender(num_held=2)], [want(2, needs=(2.0, 0.0))], (1.0, 0.0))["low"].most == 1
    assert loans([lender(num_held=4)], [want(0, 1, needs=(0.0, 1.0))], (0.0, 0.0)) == {}


def test_the_lowest_priority_lends_first():
    found = loans([lender("middle", priority=1), lender("low")], [want(4)], (0.0, 0.0))
    assert (found["low"].most, found["middle"].most) == (1, 3)


def test_what_is_free_goes_to_the_highest_priority_first():
    found = loans([lender()], [want(1, run="middle", priority=1), want(2)], (2.0, 0.0))
    assert found["low"] == Loan(lender="low", borrower="high", most=3)


def test_a_lender_gets_no_more_while_what_it_gave_back_is_free_but_not_taken_yet():
    assert loans([lender(num_held=2)], [want(2)], (2.0, 0.0)) == {"low": Loan(lender="low", borrower="high", most=2)}


def test_what_is_free_beyond_what_higher_ones_wait_for_goes_to_those_behind_them():
    low, high = want(3, run="low", priority=0), want(2)
    assert loans([lender()], [low, high], (5.0, 0.0)) == {}
    assert loans([lender()], [low, high], (4.0, 0.0))["low"].most == 6
    assert loans([lender()], [low, high], (2.0, 0.0))["low"].most == 4
    assert loans([lender()], [low, high], (1.0, 0.0))["low"].most == 3


def test_slots_that_are_worth_nothing_to_the_borrower_are_not_asked_back():
    assert loans([lender()], [want(0, 1, needs=(0.0, 1.0))], (0.0, 0.0)) == {}
    assert loans([lender()], [want(1, 1, needs=(1.0, 1.0))], (1.0, 0.0))["low"].most == 4


def test_fractions_of_a_gpu_are_rounded_up_to_whole_slots():
    halves = lender(slot=(0.5, 0.5), num_held=4)
    assert loans([halves], [want(0, 0.6, needs=(0.0, 0.6))], (0.0, 0.0))["low"].most == 2
    assert loans([halves], [want(0, 0.1 + 0.2, needs=(0.0, 0.3))], (0.0, 0.3))["low"].most == 4


@pytest.mark.parametrize("seed", range(200))
def test_carried_out_step_by_step_higher_priorities_have_what_lower_ones_could_spare_and_equals_have_alike(seed):
    chance = random.Random(seed)
    size = chance.randrange(2, 30)
    asked = {
        f"run-{number}": (chance.randrange(3), least := chance.randrange(1, 4), least + chance.randrange(8)) for number in range(5)
    }
    held = dict.fromkeys(asked, 0)
    for _ in range(60):
        found = loans(
            [lender(run, priority=rank, num_held=held[run], least=least) for run, (rank, least, _) in asked.items() if held[run]],
            [
                want(most - held[run], run=run, priority=rank, held=(held[run], 0), needs=(1 if held[run] else least, 0))
                for run, (rank, least, most) in asked.items()
                if most > held[run]
            ],
            (float(size - sum(held.values())), 0.0),
        )
        capped = {run: found[run].most if run in found else most for run, (*_, most) in asked.items()}
        before = dict(held)
        for run, (_, least, _) in asked.items():
            assert capped[run] >= min(least, held[run])
            held[run] = min(held[run], capped[run])  # what is asked back is given back
        free = size - sum(held.values())
        for run in chance.sample(list(asked), len(asked)):  # Ray gives what is free in an order of its own
            if (more := min(capped[run] - held[run], free)) >= (1 if held[run] else asked[run][1]):
                held[run] += more
                free -= more
    assert held == before, "it comes to rest"
    for run, (rank, _, most) in asked.items():
        for other, (other_rank, other_least, _) in asked.items():
            spare = held[other] - other_least
            if held[run] and held[run] < most and spare > 0:
                assert other_rank > rank or (other_rank == rank and held[other] <= held[run] + 1) or other == run, (held, asked)


TRAIN = TrainSpec(name="low", workers=(1, 4), priority="low")


def party(spec, *events, priority="low") -> Party:
    accepted = RunAccepted(run_kind="training", folder="", priority=priority)
    records = [Record(number=1 + n, run=spec.name, at_unix_s=100.0 + n, event=each) for n, each in enumerate((accepted, *events))]
    return Party(spec=spec, view=fold_all(RunView(name=spec.name), records))


def test_a_training_lends_slots_of_whole_replicas_down_to_what_was_asked_last():
    spec = TrainSpec(name="low", workers=(2, 8), group=2, gpus_per_worker=1, priority="low")
    held = [SlotsHeld(holder=f"slot {n}", num_cpus=2, num_gpus=2) for n in range(3)]
    found = lenders([party(spec, RunStarted(), *held, Resized(min_workers=4, max_workers=8))])
    assert found == [Lender(run="low", priority=0, slot=(2, 2), num_held=3, least=2)]


def test_a_training_that_has_not_started_keeps_nothing():
    assert lenders([party(TRAIN, SlotsHeld(holder="slot 1", num_cpus=1, num_gpus=0))])[0].least == 0


def test_ray_trains_engine_lends_nothing():
    assert lenders([party(TrainSpec(name="low", workers=(2, 2), engine="ray-train"))]) == []


def test_a_training_wants_its_most_and_others_what_they_cannot_start_without_after_a_while():
    stages = (StageSpec(name="a", num_cpus=1), StageSpec(name="b", num_cpus=0.5, num_gpus=1))
    parties = [
        party(TRAIN, RunStarted(), SlotsHeld(holder="slot 1", num_cpus=1, num_gpus=0)),
        party(TaskSpec(name="cell", num_cpus=2)),
        party(PipelineSpec(name="pages", stages=stages)),
        party(TaskSpec(name="started"), RunStarted()),
    ]
    assert [(each.run, each.lacks) for each in wants(parties, 101.0)] == [("low", (3, 0))]
    assert [(each.run, each.lacks) for each in wants(parties, 110.0)] == [("low", (3, 0)), ("cell", (2, 0)), ("pages", (1.5, 1))]


def test_a_service_wants_what_its_requests_need_and_who_stops_wants_nothing():
    spec = ServiceSpec(name="asked", stage=StageSpec(name="s", num_cpus=0.5, num_gpus=1), replicas=(0, 4))
    held = SlotsHeld(holder="slot 1", num_cpus=0.5, num_gpus=1)
    (found,) = wants([party(spec, ReplicasWanted(count=3), held)], 101.0)
    assert (found.lacks, found.needs, found.held) == ((1, 2), (0.5, 1), (0.5, 1))
    assert wants([party(spec), party(TRAIN, RunStarted(), StopAsked())], 110.0) == []


def test_the_slots_of_a_run_that_ended_a_moment_ago_are_on_the_way_to_somebody():
    ended = party(TRAIN, SlotsHeld(holder="slot 1", num_cpus=1, num_gpus=2), RunEnded(state="done")).view
    assert on_the_way([ended], ended.ended_at_unix_s + 0.5) == (1, 2)
    assert on_the_way([ended], ended.ended_at_unix_s + 1.5) == (0, 0)


def test_a_pipeline_that_has_started_wants_slots_until_each_stage_has_had_a_replica():
    spec = PipelineSpec(name="pages", stages=(StageSpec(name="a", num_cpus=1), StageSpec(name="b", num_cpus=2)))
    started = (RunAccepted(run_kind="pipeline", folder="", stages=("a", "b")), RunStarted())
    first = (
        SlotsHeld(holder="a-1", num_cpus=1, num_gpus=0),
        ReplicaStarted(stage="a", replica="a-1", pid=1, node="n", start_s=0.1),
    )
    second = (
        SlotsHeld(holder="b-1", num_cpus=2, num_gpus=0),
        ReplicaStarted(stage="b", replica="b-1", pid=2, node="n", start_s=0.1),
    )
    assert [each.lacks for each in wants([party(spec, *started)], 110.0)] == [(3, 0)]
    assert [each.lacks for each in wants([party(spec, *started, *first)], 110.0)] == [(2, 0)]
    assert wants([party(spec, *started, *first, *second)], 110.0) == []


def test_a_command_is_given_once_and_taken_back_when_nobody_waits():
    loan = Loan(lender="low", borrower="high", most=1)
    told = Lend(run="low", borrower="high", max_workers=1)
    borrower = party(TaskSpec(name="high"))
    assert lend(party(TRAIN, RunStarted()), loan, [borrower]) == told
    lent = party(TRAIN, RunStarted(), SlotsLent(borrower="high", max_workers=1))
    assert lend(lent, loan, [borrower]) is None
    assert lend(lent, None, [borrower]) == Lend(run="low", borrower="high", max_workers=None)
    assert lend(party(TRAIN, RunStarted()), None, [borrower]) is None


@pytest.mark.parametrize(
    ("borrower", "hands_on"),
    [
        (ServiceSpec(name="high", stage=StageSpec(name="s", num_cpus=1, num_gpus=1)), True),
        (ServiceSpec(name="high", stage=StageSpec(name="s", num_cpus=0, num_gpus=1)), True),
        (ServiceSpec(name="high", stage=StageSpec(name="s", num_cpus=2, num_gpus=1)), False),
        (ServiceSpec(name="high", stage=StageSpec(name="s", num_cpus=0, num_gpus=0.5)), False),
        (TrainSpec(name="high", workers=(1, 2), cpus_per_worker=1, gpus_per_worker=1), True),
        (TrainSpec(name="high", workers=(2, 4), cpus_per_worker=1, gpus_per_worker=1, group=2), False),
        (TrainSpec(name="high", workers=(1, 2), cpus_per_worker=1, gpus_per_worker=1, engine="ray-train"), False),
        (TaskSpec(name="high", num_cpus=1, num_gpus=1), False),
    ],
)
def test_a_slot_goes_to_the_borrower_itself_where_it_holds_such_slots_too(borrower, hands_on):
    spec = TrainSpec(name="low", workers=(1, 4), cpus_per_worker=1, gpus_per_worker=1)
    runs = [party(spec, RunStarted()), party(borrower)]
    told = lend(runs[0], Loan(lender="low", borrower="high", most=1), runs)
    assert told.hands_on is hands_on


@pytest.mark.parametrize(("num_cpus", "hands_on"), [(4, False), (1, True)])
def test_cpus_that_nobody_asked_for_are_not_handed_on_where_cpus_are_all_there_is(num_cpus, hands_on):
    spec = TrainSpec(name="low", workers=(1, 4), cpus_per_worker=num_cpus)
    runs = [party(spec, RunStarted()), party(ServiceSpec(name="high", stage=StageSpec(name="s", num_cpus=1)))]
    assert lend(runs[0], Loan(lender="low", borrower="high", most=1), runs).hands_on is hands_on
