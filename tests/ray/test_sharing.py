"""A training and services on the same GPUs (simulated), whatever dies while these change hands."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

import raykit as rk
from raykit.errors import RunFailedError, RunLostError
from raykit.events import HostStarted, RunAccepted, RunEnded, SlotsHeld, SlotsReleased, WorldFormed
from raykit.store.log import Log
from tests.ray import loops

pytestmark = pytest.mark.ray

NUM_GPUS = 3


@pytest.fixture(scope="module")
def gpus(raykit_home):
    yield rk.up("gpus", num_cpus=8, num_simulated_gpus=NUM_GPUS, object_store_bytes=100_000_000)
    rk.down("gpus")


@pytest.fixture
def started(gpus, until):
    """Give the cluster, and a list of what is to be ended with the test."""
    rk.use("gpus")
    runs = []
    yield runs
    for run in runs:
        run.stop()
    until(lambda: all(run.refresh().ended for run in runs))


@rk.stage(cpus=0, gpus=1)
def answer(row):
    time.sleep(0.2)
    return {"y": 2 * row["x"]}


def serve(started, name="labels", **options):
    service = rk.serve(answer, name=name, **{"replicas": (0, 2), "slo_s": 0.2} | options).wait()
    started.append(service.run)
    return service


def train(started, function, *args, **options):
    given = {"workers": (1, NUM_GPUS), "gpus": 1, "spares": 0, "priority": "low", "name": "soak"} | options
    started.append(rk.train(function, *args, **given))
    return started[-1]


def burst(service, num_requests=6):
    """Ask from so many threads at once; give those, and what was answered."""
    answers = []
    threads = [threading.Thread(target=lambda x=x: answers.append((x, service({"x": x})["y"]))) for x in range(num_requests)]
    for thread in threads:
        thread.start()
    return threads, answers


def is_answered(threads, answers, num_requests=6):
    for thread in threads:
        thread.join(60)
    return sorted(answers) == [(x, 2 * x) for x in range(num_requests)]


def num_gpus(view):
    return sum(slot.num_gpus for slot in view.held)


def most_held(cluster, by=None):
    """Give the most GPUs that were held at once, by all runs or by one, as the log says."""
    log = Log(Path(cluster.record.folder) / "log.sqlite")
    held: dict[tuple[str, str], float] = {}
    most = 0.0
    for record in log.read_all(run=by, kinds=(SlotsHeld, SlotsReleased, RunEnded)):
        if isinstance(record.event, SlotsHeld):
            held[record.run, record.event.holder] = record.event.num_gpus
        elif isinstance(record.event, SlotsReleased):
            held.pop((record.run, record.event.holder), None)
        else:
            held = {(run, holder): gpus for (run, holder), gpus in held.items() if run != record.run}
        most = max(most, sum(held.values()))
    log.close()
    return most


def groups_of(cluster, run):
    """Give the placement groups that a run has held."""
    log = Log(Path(cluster.record.folder) / "log.sqlite")
    groups = {record.event.group for record in log.read_all(run=run, kinds=(SlotsHeld,))}
    log.close()
    return groups


def host_of(cluster, run):
    """Give the process of a run's newest host."""
    log = Log(Path(cluster.record.folder) / "log.sqlite")
    (*_, newest) = log.read_all(run=run, kinds=(HostStarted,))
    log.close()
    return newest.event.pid


def worlds_of(cluster, run):
    """Give the worlds of a run since it was begun or resumed."""
    log = Log(Path(cluster.record.folder) / "log.sqlite")
    events = [record.event for record in log.read_all(run=run, kinds=(RunAccepted, WorldFormed))]
    log.close()
    begun = max(place for place, event in enumerate(events) if isinstance(event, RunAccepted))
    return events[begun + 1 :]


def test_a_rank_that_lends_its_slot_waits_in_its_process_and_a_warm_replica_has_it_at_once(gpus, started, until):
    low = train(started, loops.linear, 10_000, 0.05)
    until(lambda: low.refresh().world_size == NUM_GPUS)
    pids = {rank.pid for rank in low.view.ranks}
    service = serve(started, warm=2)
    replicas = until(lambda: len(there := service.run.refresh().stages[0].replicas) == 2 and there)
    assert num_gpus(service.run.view) == 0
    assert is_answered(*burst(service))
    until(lambda: num_gpus(service.run.refresh()) == 0)
    until(lambda: low.refresh().world_size == NUM_GPUS)
    assert most_held(gpus, by=service.name) == 2
    assert groups_of(gpus, service.name) <= groups_of(gpus, low.name)  # from hand to hand, not by way of Ray
    sizes = [len(world.workers) for world in worlds_of(gpus, low.name)]
    assert 1 in sizes[sizes.index(NUM_GPUS) :]
    assert {rank.pid for rank in low.view.ranks if not rank.lost} == pids
    assert service.run.view.stages[0].replicas == replicas or not any(each.gone for each in service.run.view.stages[0].replicas)
    assert most_held(gpus) <= NUM_GPUS


@pytest.mark.parametrize("num_reclaims", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_the_model_is_that_of_an_undisturbed_run_however_often_its_slots_are_lent(gpus, started, until, num_reclaims):
    low = train(started, loops.linear, 10_000, 0.05)
    service = serve(started, warm=2)
    for _ in range(num_reclaims):
        until(lambda: low.refresh().world_size == NUM_GPUS)
        assert is_answered(*burst(service))
        until(lambda: num_gpus(service.run.refresh()) == 0)
    low.stop()
    until(lambda: low.refresh().ended)
    learned = low.state_dict()["weight"].flatten().tolist()
    assert learned == pytest.approx(loops.alone_for(low.view.checkpoint_step), abs=1e-4)
    assert sum(mark.words.endswith("comes first") for mark in low.view.marks) >= num_reclaims
    assert low.view.cards == ()
    assert most_held(gpus) <= NUM_GPUS


def test_two_services_and_a_training_keep_their_places_while_ranks_hosts_and_the_hub_are_killed(gpus, started, until):
    low = train(started, loops.linear, 10_000, 0.05)
    until(lambda: low.refresh().world_size == NUM_GPUS)
    first, second = serve(started, "first", replicas=(0, 1)), serve(started, "second", replicas=(0, 1))
    asked = [burst(first)]
    until(lambda: low.refresh().world_size == NUM_GPUS - 1)
    os.kill(next(rank.pid for rank in low.view.ranks if rank.rank == 0), signal.SIGKILL)
    asked.append(burst(second))
    first.run.drill("kill-host")
    os.kill(gpus.door.ping()["pid"], signal.SIGKILL)
    assert all(is_answered(*each) for each in asked)
    asked = [burst(first), burst(second)]
    low.drill("kill-host")
    assert all(is_answered(*each) for each in asked)
    until(lambda: low.refresh().world_size == NUM_GPUS)
    assert low.view.step > 0
    assert all(card.good for card in low.view.cards)
    assert first.run.refresh().service.num_failed == second.run.refresh().service.num_failed == 0
    assert most_held(gpus) <= NUM_GPUS


def test_a_slot_that_is_handed_on_to_a_host_that_is_killed_at_that_moment_is_not_lost(gpus, started, until):
    low = train(started, loops.linear, 10_000, 0.5)
    until(lambda: low.refresh().world_size == NUM_GPUS)
    service = serve(started, replicas=(0, 1))
    asked = burst(service)
    until(lambda: service.run.refresh().service.wanted == 1)
    os.kill(host_of(gpus, service.name), signal.SIGSTOP)
    until(lambda: num_gpus(low.refresh()) == NUM_GPUS - 1)
    os.kill(host_of(gpus, service.name), signal.SIGKILL)
    assert is_answered(*asked)
    until(lambda: low.refresh().world_size == NUM_GPUS)
    assert most_held(gpus) <= NUM_GPUS


@pytest.mark.slow
def test_a_head_that_is_lost_in_the_middle_and_comes_back_finds_every_gpu_with_one_holder(own, until):
    head = {"num_cpus": 8, "num_simulated_gpus": NUM_GPUS}
    cluster, runs = own("again", **head), []
    low = train(runs, loops.linear, 10_000, 0.05, checkpoint_every="5steps")
    service = serve(runs, warm=2)
    until(lambda: low.refresh().world_size == NUM_GPUS and low.view.checkpoint_step)
    until(lambda: is_answered(*burst(service)) and num_gpus(service.run.refresh()) > 0)
    os.kill(cluster.record.head.pid, signal.SIGKILL)
    with pytest.raises(RunLostError):
        low.wait()
    own("again", **head)
    saved_step = low.view.checkpoint_step
    low, service = rk.resume("soak"), rk.service(rk.resume("labels").name).wait()
    until(lambda: low.refresh().world_size == NUM_GPUS)
    assert is_answered(*burst(service))
    until(lambda: low.refresh().world_size == NUM_GPUS and num_gpus(service.run.refresh()) == 0)
    assert worlds_of(cluster, "soak")[0].step >= saved_step >= 5
    assert low.view.cards == ()
    assert most_held(cluster) <= NUM_GPUS


def test_what_a_service_took_and_cannot_use_goes_back(gpus, started, until, tmp_path):
    @rk.stage(cpus=0, gpus=1)
    class Broken:
        def __init__(self):
            raise OSError("the weights are not there")

        def __call__(self, row):
            return row

    low = train(started, loops.linear, 10_000, 0.05)
    until(lambda: low.refresh().world_size == NUM_GPUS)
    broken = rk.serve(Broken, name="broken", replicas=2)
    with pytest.raises(RunFailedError, match="the weights are not there"):
        broken.wait()
    until(lambda: low.refresh().world_size == NUM_GPUS and low.view.loan is None)
    assert num_gpus(low.view) == NUM_GPUS
    step = low.view.step
    until(lambda: low.refresh().step > step)


def test_a_replica_that_dies_is_replaced_by_one_that_was_warm(started, until):
    service = serve(started, replicas=(1, 2), slo_s=5)
    there = until(lambda: len(there := service.run.refresh().stages[0].replicas) == 2 and there)
    assert num_gpus(service.run.view) == 1
    service.run.drill("kill-worker")
    until(lambda: service.run.refresh().cards)
    assert service({"x": 4}) == {"y": 8}
    until(lambda: any(each.rows_in for each in service.run.refresh().stages[0].replicas if not each.gone))
    (at_work,) = (each for each in service.run.view.stages[0].replicas if not each.gone and each.rows_in)
    assert at_work.pid in {each.pid for each in there}
    assert num_gpus(service.run.view) == 1
