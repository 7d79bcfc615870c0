"""What a training run does about a loss, by its policy and by its user's; and losses that come at the worst moment."""

import os
import resource
import signal
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

import raykit as rk
from raykit.errors import CapacityError, OptionError, RunError, RunFailedError, RunNameTakenError, RunStoppedError
from raykit.events import HostStarted

from . import loops

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def wide(raykit_home):
    """A cluster with slots for four ranks, whatever the machine has."""
    yield rk.up("wide", num_cpus=4, object_store_bytes=100_000_000)
    rk.down("wide")


@pytest.fixture(autouse=True)
def _current(wide):
    rk.use("wide")


def _kill(run, *ranks, number=signal.SIGKILL):
    for each in [rank for rank in run.refresh().ranks if rank.rank in ranks and not rank.lost]:
        os.kill(each.pid, number)


def _host(run):
    records = run.cluster.door.events(run.name, after=0, wait_s=0)
    return next(record.event.pid for record in reversed(records) if isinstance(record.event, HostStarted))


def _spare_is_ready(run):
    return any(rank.rank is None and rank.ready and not rank.lost for rank in run.refresh().ranks)


def _whole(run, size):
    return run.refresh().world_size == size and run.view.state == "running" and _spare_is_ready(run)


def _facts(run):
    """Give the facts of the cards about lost ranks; the host's has no cause."""
    return [facts for card in run.view.cards if "cause" in (facts := dict(card.facts))]


def _has_learned_what_one_process_learns(run, until):
    """End a run at its next commit, and compare it with as many steps in one process."""
    run.stop()
    until(lambda: run.refresh().ended)
    return run.state_dict()["weight"].flatten().tolist() == pytest.approx(loops.alone_for(run.view.checkpoint_step), abs=1e-4)


def test_a_run_that_waits_goes_on_at_its_full_size_only(until):
    run = rk.train(loops.linear, 200, 0.01, workers=(1, 2), on_loss="wait", name="waits")
    until(lambda: _whole(run, 2))
    _kill(run, 1)
    until(lambda: _facts(run.refresh() and run))
    assert _facts(run)[0]["world"] == "2 → 2"
    run.stop()
    until(lambda: run.refresh().ended)


def test_a_run_that_stops_at_a_loss_has_saved_its_last_step_and_is_taken_up_again(until):
    run = rk.train(loops.linear, 20, 0.01, workers=2, on_loss="stop", name="stops")
    until(lambda: run.refresh().step > 20)
    _kill(run, 0)
    with pytest.raises(RunStoppedError, match="on_loss is stop"):
        run.wait()
    (facts,) = _facts(run)
    assert "is saved, and the run ends" in facts["done"]
    assert run.view.checkpoint_step >= run.view.step
    resumed = rk.resume("stops").wait()
    assert resumed.result["step"] == 400
    assert resumed.result["weight"] == pytest.approx(loops.alone(20), abs=1e-4)


def test_the_user_s_function_sees_the_view_and_answers(until):
    def answer(view):
        lost = sum(rank.lost for rank in view.ranks)
        return "shrink" if lost < 2 else "stop"

    run = rk.train(loops.linear, 300, 0.01, workers=(1, 2), on_loss=answer, name="answers")
    until(lambda: _whole(run, 2))
    _kill(run, 1)
    until(lambda: len(_facts(run.refresh() and run)) == 1)
    until(lambda: _whole(run, 2))
    _kill(run, 1)
    with pytest.raises(RunStoppedError):
        run.wait()


@pytest.mark.slow
def test_a_function_that_raises_or_answers_nonsense_fails_the_run_with_its_own_words(until):
    def broken(view):
        return view.nothing

    def nonsense(view):
        return "perhaps"

    for function, words in ((broken, "nothing"), (nonsense, "'perhaps'")):
        run = rk.train(loops.linear, 300, 0.01, workers=2, on_loss=function)
        until(lambda run=run: run.refresh().step > 0)
        _kill(run, 1)
        with pytest.raises(RunFailedError, match=words):
            run.wait()


def test_an_answer_that_does_not_exist_is_refused_before_anything_starts():
    for word in ("shrink or wait", "shrnk"):
        with pytest.raises(OptionError, match="shrink, wait, stop"):
            rk.train(loops.linear, 1, on_loss=word)


def test_an_interval_or_a_cause_that_does_not_exist_is_refused_before_anything_starts():
    with pytest.raises(OptionError, match="500steps"):
        rk.train(loops.linear, 1, checkpoint_every="soon")
    with pytest.raises(OptionError, match="died, hung, node, memory"):
        rk.train(loops.linear, 1, max_losses={"tired": 1})


def test_a_budget_of_losses_ends_the_run_and_its_state_is_kept(until):
    run = rk.train(loops.linear, 300, 0.01, workers=2, max_losses={"died": 0}, name="budget")
    until(lambda: run.refresh().step > 20)
    _kill(run, 1)
    with pytest.raises(RunFailedError, match=r"1 workers were lost \(died\)"):
        run.wait()
    assert run.state_dict()["weight"].shape == (2, 10)


def test_a_rank_that_is_let_go_does_what_the_user_wants_before(until, tmp_path):
    def leaves(folder):
        import pathlib
        import time

        import torch

        model = torch.nn.Linear(4, 1)
        job = rk.elastic(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.01))
        rank = []
        job.on_leave(lambda: pathlib.Path(folder, f"left-{rank[0]}").touch())
        for batch in job.batches({"x": torch.ones(40, 4)}, batch_size=8, epochs=500):
            rank[:] = [job.rank]
            model(batch["x"]).mean().backward()
            time.sleep(0.01)
            job.commit()

    run = rk.train(leaves, str(tmp_path), workers=2, name="leaves")
    until(lambda: run.refresh().step > 10)
    run.resize(1)
    until((tmp_path / "left-1").exists)
    until(lambda: run.refresh().world_size == 1)
    assert not (tmp_path / "left-0").exists()
    run.stop()
    until(lambda: run.refresh().ended)


@pytest.mark.slow
def test_two_ranks_that_die_at_once_cost_no_committed_step(until):
    run = rk.train(loops.linear, 10_000, 0.01, workers=(1, 4), name="pair")
    until(lambda: _whole(run, 4))
    _kill(run, 0, 2)
    until(lambda: _facts(run.refresh() and run))
    assert _has_learned_what_one_process_learns(run, until)
    assert all(card.good for card in run.view.cards)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 3])
def test_a_rank_that_dies_while_the_run_is_made_smaller_does_not_hold_the_others(until, rank):
    run = rk.train(loops.linear, 10_000, 0.01, workers=(1, 4), name=f"smaller-{rank}")
    until(lambda: _whole(run, 4))
    _kill(run, rank)
    run.resize((1, 3))
    until(lambda: _facts(run.refresh() and run) and run.view.world_size == 3)
    assert _has_learned_what_one_process_learns(run, until)


@pytest.mark.slow
def test_a_rank_that_dies_while_another_joins_does_not_hold_the_others(until):
    run = rk.train(loops.linear, 10_000, 0.01, workers=(1, 2), name="joined")
    until(lambda: _whole(run, 2))
    run.resize((1, 3))
    until(lambda: any(rank.rank is None for rank in run.refresh().ranks))
    _kill(run, 1)
    until(lambda: _facts(run.refresh() and run) and run.view.world_size == 3)
    assert _has_learned_what_one_process_learns(run, until)


@pytest.mark.slow
def test_a_rank_that_hangs_after_the_host_came_back_is_found(until):
    run = rk.train(loops.linear, 10_000, 0.01, workers=(1, 2), name="later")
    until(lambda: _whole(run, 2))
    run.drill("kill-host")
    until(lambda: run.refresh().host_attempts == 2)
    _kill(run, 1, number=signal.SIGSTOP)
    until(lambda: _facts(run.refresh() and run))
    assert _has_learned_what_one_process_learns(run, until)


def test_a_host_that_is_killed_while_it_stops_leaves_no_slot_held(until):
    run = rk.train(loops.linear, 400, 0.3, workers=2, name="stopping")
    until(lambda: run.refresh().step > 0)
    host = _host(run)
    run.stop()
    os.kill(host, signal.SIGKILL)
    with pytest.raises(RunStoppedError):
        run.wait()
    until(lambda: rk.status("wide").num_cpus_free == 4)
    assert run.view.checkpoint_step == run.view.step


@pytest.mark.parametrize("ask", [lambda run: run.stop(), lambda run: run.resize((1, 2))], ids=["stop", "resize"])
def test_what_was_asked_is_known_to_the_next_host_also_if_the_log_was_slow(until, ask):
    run = rk.train(loops.linear, 10_000, 0.02, workers=1, name="asked")
    until(lambda: run.refresh().step > 0)
    asks = threading.Thread(target=ask, args=(run,))
    with closing(sqlite3.connect(Path(run.view.folder).parents[1] / "log.sqlite")) as log:
        log.execute("BEGIN IMMEDIATE")  # nobody else can write
        asks.start()
        asks.join(2)
        os.kill(_host(run), signal.SIGKILL)
    asks.join()
    until(lambda: run.refresh().state == "stopped" or run.view.resized_to == (1, 2))
    run.stop()
    until(lambda: run.refresh().ended)
    assert run.view.state == "stopped"


def test_a_run_that_is_stopped_on_a_full_disk_ends_when_there_is_room_with_its_last_step(until):
    run = rk.train(loops.linear, 10_000, 0.02, workers=1, name="full")
    until(lambda: run.refresh().step > 0)
    (pid,) = [rank.pid for rank in run.view.ranks if rank.rank == 0]
    limits = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, limits[1]))  # no file may be longer
    run.stop()
    until(lambda: any(card.title == "Checkpoints cannot be written" for card in run.refresh().cards))
    assert not run.view.ended
    resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
    with pytest.raises(RunStoppedError):
        run.wait()
    assert run.view.checkpoint_step == run.view.step


@pytest.mark.slow
def test_a_run_that_ends_while_a_spare_is_invited_ends(until):
    def ends():
        import time

        import torch

        model = torch.nn.Linear(4, 1)
        job = rk.elastic(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.01))
        sizes = []
        for batch in job.batches({"x": torch.ones(40, 4)}, batch_size=8, epochs=500):
            model(batch["x"]).mean().backward()
            time.sleep(0.02)
            job.commit()
            sizes.append(job.world_size)
            if len(sizes) > 1 and sizes[-1] < sizes[-2]:
                job.stop()  # the survivors' first step after a loss: a spare has been invited by then
        return job.step

    for number in range(2):
        run = rk.train(ends, workers=(1, 3), name=f"ends-{number}")
        until(lambda run=run: _whole(run, 3))
        _kill(run, 2)
        assert 0 < run.wait().result < 2500


def test_when_all_ranks_die_at_once_the_run_goes_on_from_its_checkpoint(until):
    run = rk.train(loops.linear, 10_000, 0.01, workers=2, spares=0, checkpoint_every="50steps", name="all-lost")
    until(lambda: (run.refresh().checkpoint_step or 0) >= 100)
    _kill(run, 0, 1)
    until(lambda: _facts(run.refresh() and run))
    assert _has_learned_what_one_process_learns(run, until)
    (facts,) = _facts(run)
    assert "from the last checkpoint" in facts["done"]


def test_the_state_and_the_metrics_of_a_run_are_there_without_the_cell(tmp_path):
    run = rk.train(loops.linear, 3, workers=2, checkpoint_to=f"file://{tmp_path}/kept", name="kept").wait()
    assert run.state_dict()["weight"].flatten().tolist() == pytest.approx(loops.alone(3), abs=1e-5)
    metrics = run.metrics()
    assert metrics.index.is_monotonic_increasing
    assert set(metrics.columns) == {"epoch", "rows", "loss"}
    assert metrics["rows"].iloc[-1] <= 3000


@pytest.mark.slow
def test_a_node_that_is_lost_takes_its_ranks_and_the_others_go_on(own, until):
    own("pair", num_nodes=2)
    run = rk.train(loops.linear, 400, 0.01, workers=(1, 4), spares=1, name="node")
    until(lambda: run.refresh().world_size == 4 and run.view.step > 0)
    began = time.monotonic()
    run.drill("kill-node")
    until(lambda: any(card.title == "Drill kill-node: passed" for card in run.refresh().cards))
    assert run.view.world_size <= 3, time.monotonic() - began
    run.stop()
    until(lambda: run.refresh().ended)


def test_a_run_goes_on_after_ray_too_knows_that_a_node_is_lost(own, until):
    own("trio", num_nodes=3, num_cpus=1)
    run = rk.train(loops.linear, 100_000, 0.01, workers=(1, 3), spares=0, name="trio")
    until(lambda: run.refresh().world_size == 3 and run.view.step > 0)
    run.drill("kill-node")
    until(lambda: len(run.refresh().held) == 2 or run.view.ended)  # Ray takes some ten seconds
    step = run.view.step
    until(lambda: run.refresh().step > step + 50 or run.view.ended)
    run.stop()
    until(lambda: run.refresh().ended)
    assert run.view.state == "stopped", run.view.error


@pytest.mark.slow
def test_a_spare_is_placed_on_another_node_than_the_ranks(own, until):
    own("apart", num_nodes=2)
    run = rk.train(loops.linear, 400, 0.01, workers=(1, 2), spares=1, name="apart")
    until(lambda: _whole(run, 2))
    ranks = [rank.node for rank in run.view.ranks if rank.rank is not None]
    spare = next(rank.node for rank in run.view.ranks if rank.rank is None)
    assert ranks.count(spare) <= 1
    run.stop()
    until(lambda: run.refresh().ended)


@pytest.mark.slow
def test_a_run_grows_by_itself_when_another_gives_its_slots_back(until):
    def hold():
        time.sleep(600)

    other = rk.run(hold, name="holds", cpus=3)
    until(lambda: other.refresh().slots)
    run = rk.train(loops.linear, 2000, 0.01, workers=(1, 3), name="grows")
    until(lambda: run.refresh().step > 5)
    assert run.view.world_size == 1
    other.stop()
    until(lambda: run.refresh().world_size == 3)
    assert not _facts(run)
    run.stop()
    until(lambda: run.refresh().ended)


@pytest.mark.slow
def test_a_run_is_taken_up_on_another_cluster_where_it_was_also_when_its_own_is_down(own, until):
    own("second")
    own("first")
    run = rk.train(loops.linear, 30, 0.01, workers=2, name="moved")
    until(lambda: run.refresh().step > 50)
    with pytest.raises(RunNameTakenError, match="goes on in the cluster first"):
        rk.resume("moved", on="second")
    run.stop()
    until(lambda: run.refresh().ended)
    stopped_at = run.view.step
    rk.down("first")
    moved = rk.resume("moved", on="second")
    assert until(lambda: moved.refresh().step) >= stopped_at
    moved.wait()
    assert moved.result["step"] == 600
    assert moved.result["weight"] == pytest.approx(loops.alone(30), abs=1e-4)


@pytest.mark.slow
def test_a_cluster_that_cannot_hold_a_run_refuses_to_take_it_up_and_the_run_can_be_taken_up_elsewhere(own, until):
    run = rk.train(loops.linear, 8, 0.01, workers=3, spares=0, name="large")
    until(lambda: run.refresh().step > 0)
    run.stop()
    until(lambda: run.refresh().ended)
    own("small")
    with pytest.raises(CapacityError, match="3 slots"):
        rk.resume("large", on="small")
    assert rk.runs("small") == []
    assert rk.resume("large", on="wide").wait().result["step"] == 160


def test_the_loss_of_the_only_node_is_no_drill(until):
    run = rk.train(loops.linear, 300, 0.01, name="only")
    until(lambda: run.refresh().step > 0)
    with pytest.raises(RunError, match="--nodes 2"):
        run.drill("kill-node")
    run.stop()
    until(lambda: run.refresh().ended)
