"""Elastic training of a low priority gives slots to runs of a higher one, and has them again."""

import time

import pytest

import raykit as rk
from raykit.cluster.record import processes
from raykit.engine.arbiter import Party, wants
from raykit.events import SlotsHeld, SlotsLent, StepCommitted, WorldFormed
from raykit.spec import TrainSpec
from raykit.views import RunView, fold_all
from tests.ray import loops

pytestmark = pytest.mark.ray


def test_a_training_gives_way_to_one_of_a_higher_priority_and_ends_as_if_undisturbed(cluster, until):
    low = rk.train(loops.linear, 10_000, 0.02, workers=(1, 2), spares=0, name="background", priority="low")
    until(lambda: low.refresh().world_size == 2)
    high = rk.train(loops.linear, 4, 0.01, workers=(1, 1), spares=0, name="urgent", priority="high")
    until(lambda: high.refresh().started_at_unix_s)
    assert low.refresh().world_size == 1
    assert not low.view.ended
    assert high.wait().result["step"] == 80
    until(lambda: low.refresh().world_size == 2)
    low.stop()
    until(lambda: low.refresh().ended)
    learned = low.state_dict()["weight"].flatten().tolist()
    assert learned == pytest.approx(loops.alone_for(low.view.checkpoint_step), abs=1e-4)
    assert low.view.cards == ()
    assert [mark.words for mark in low.view.marks] == [
        f"{high.name} comes first",
        f"{high.name} has what it needs",
        "a stop was asked",
    ]


def test_a_rank_gives_its_slot_in_the_middle_of_a_step_and_the_others_do_what_it_leaves(cluster, until, tmp_path):
    def learn(lent):
        import time

        import torch

        torch.manual_seed(0)
        torch.set_default_dtype(torch.float64)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
        job = rk.elastic(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
        for batch in job.batches({"x": torch.randn(1200, 4)}, batch_size=600, epochs=2, micro_batch=5):
            model(batch["x"]).pow(2).mean().backward()
            # The second step takes its time until the slot has been lent: a rank alone would need a minute for it.
            time.sleep(0 if job.step != 1 or lent.exists() else 0.5)
            job.commit()
        return [float(value) for each in model.parameters() for value in each.detach().flatten()]

    low = rk.train(learn, tmp_path / "lent", workers=(1, 2), spares=0, name="in-parts", priority="low")
    until(lambda: low.refresh().world_size == 2 and low.view.step >= 1)
    high = rk.run(lambda: 42, name="sudden", priority="high")
    until(lambda: high.refresh().ended)
    (tmp_path / "lent").touch()
    held = next(record for record in records_of(high) if isinstance(record.event, SlotsHeld))
    lent = next(record for record in records_of(low) if isinstance(record.event, SlotsLent))
    low.wait()
    steps = [record for record in records_of(low) if isinstance(record.event, StepCommitted)]
    assert not [step for step in steps if lent.at_unix_s < step.at_unix_s < held.at_unix_s], "it came before the step's end"
    assert [step.event.step for step in steps] == [1, 2, 3, 4]
    alone = rk.train(learn, tmp_path / "lent", workers=1, spares=0, name="in-parts-alone").wait()
    assert low.result == pytest.approx(alone.result, rel=1e-9)


@pytest.mark.slow
def test_a_rank_that_comes_in_the_middle_of_a_step_takes_part_in_the_rest_of_it(cluster, until):
    def learn(pause_s):
        import time

        import torch

        torch.manual_seed(0)
        torch.set_default_dtype(torch.float64)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        job = rk.elastic(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
        for batch in job.batches({"x": torch.randn(1800, 4)}, batch_size=1800, micro_batch=3):
            time.sleep(pause_s if job.world_size == 1 else 0)
            loss = model(batch["x"]).pow(2).mean()
            loss.backward()
            job.commit(loss=loss)
        return [float(value) for each in model.parameters() for value in each.detach().flatten()]

    holder = rk.run(time.sleep, 600, name="holder")
    until(lambda: holder.refresh().started_at_unix_s)
    low = rk.train(learn, 0.1, workers=(1, 2), spares=0, name="grows", priority="low")
    until(lambda: low.refresh().world_size == 1)
    holder.stop()
    low.wait()
    formed = [record.event for record in records_of(low) if isinstance(record.event, WorldFormed)]
    assert [(len(each.workers), each.step) for each in formed] == [(1, 0), (2, 0)]
    assert low.view.step == 1
    alone = rk.train(learn, 0.0, workers=1, spares=0, name="grows-alone").wait()
    assert low.result == pytest.approx(alone.result, rel=1e-9)
    assert low.metrics()["loss"][1] == pytest.approx(alone.metrics()["loss"][1])


def records_of(run):
    return run.cluster.door.events(run.name, after=0, wait_s=0)


def test_a_run_that_ends_wants_none_of_what_it_gives_back(cluster):
    run = rk.train(loops.linear, 2, 0.01, workers=(1, 1), spares=0, name="short").wait()
    records = records_of(run)
    spec, view, wanted = TrainSpec(name="short", workers=(1, 1)), RunView(name="short"), list[bool]()
    for record in records:
        view = fold_all(view, [record])
        wanted.append(not view.ended and wants([Party(spec=spec, view=view)], record.at_unix_s) != [])
    has_held = next(place for place, record in enumerate(records) if isinstance(record.event, SlotsHeld))
    assert wanted[has_held - 1]
    assert not any(wanted[has_held:])


def test_a_cell_and_a_pipeline_borrow_what_they_cannot_start_without(cluster, until):
    low = rk.train(loops.linear, 10_000, 0.02, workers=(1, 2), spares=0, name="soak", priority="low")
    until(lambda: low.refresh().world_size == 2)
    assert rk.run(lambda: 42, name="cell").wait().result == 42
    until(lambda: low.refresh().world_size == 2)

    @rk.stage(cpus=1)
    def double(row):
        return {"y": 2 * row["item"]}

    assert len(rk.Pipeline([double]).run(range(100), name="rows", priority="high").wait().result) == 100
    low.stop()
    until(lambda: low.refresh().ended)


def test_a_loan_is_kept_when_host_and_hub_are_killed(cluster, until):
    low = rk.train(loops.linear, 10_000, 0.02, workers=(1, 2), spares=0, name="hit", priority="low")
    until(lambda: low.refresh().world_size == 2)
    high = rk.run(time.sleep, 8, name="sleeper")
    until(lambda: low.refresh().loan)
    low.drill("kill-host")
    until(lambda: high.refresh().started_at_unix_s)
    until(lambda: low.refresh().host_attempts == 2)
    (hub,) = (each for each in processes("shared") if each.name() == "ray::Hub")
    hub.kill()
    step = low.view.step
    until(lambda: low.refresh().step > step)
    assert low.view.world_size == 1
    high.wait()
    until(lambda: low.refresh().world_size == 2)
    low.stop()
    until(lambda: low.refresh().ended)


def test_a_rank_that_does_not_come_to_a_commit_is_ended_after_a_while_and_no_committed_step_is_lost(cluster, until, tmp_path):
    def stubborn():
        import time

        import torch

        import raykit as rk

        model = torch.nn.Linear(4, 1)
        job = rk.elastic(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.01))
        for batch in job.batches({"x": torch.ones(64, 4)}, batch_size=8, epochs=2):
            model(batch["x"]).sum().backward()
            (tmp_path / str(job.step)).touch()
            while job.step == 5 and not (tmp_path / "go").exists():
                time.sleep(0.05)
            job.commit()
        return job.step

    low = rk.train(stubborn, workers=(1, 2), spares=0, name="stubborn", priority="low", lend_within_s=1, on_loss="stop")
    until(lambda: (tmp_path / "5").exists() and low.refresh().world_size == 2)
    assert rk.run(lambda: 42, name="urgent").wait().result == 42
    assert low.refresh().step == 5
    (tmp_path / "go").touch()
    assert low.wait().result == 16
    assert "within 1 s after its slot was wanted" in str(low.view.cards[0].facts)


@pytest.mark.slow
def test_plain_ray_train_in_the_same_cluster_trains_on_what_raykit_does_not_hold(cluster, until, tmp_path):
    def plain():
        import os
        import tempfile

        import ray
        from ray.train import RunConfig, ScalingConfig, get_context
        from ray.train.torch import TorchTrainer

        def loop():
            (tmp_path / f"rank {get_context().get_world_rank()} of {get_context().get_world_size()}").touch()

        # After a first decision that counts on all slots, which can come before the coordinator is told.
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "5"
        with tempfile.TemporaryDirectory(prefix="rk-") as folder:
            scaling = ScalingConfig(num_workers=(1, 2), resources_per_worker={"CPU": 1})
            TorchTrainer(loop, scaling_config=scaling, run_config=RunConfig(storage_path=folder)).fit()
        ray.kill(ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator"))

    holder = rk.run(time.sleep, 600, name="holder")
    until(lambda: holder.refresh().started_at_unix_s)
    rk.run(plain, cpus=0, name="plain").wait()
    assert [file.name for file in tmp_path.iterdir()] == ["rank 0 of 1"]
    holder.stop()
    until(lambda: holder.refresh().ended)


@pytest.mark.slow
def test_a_waiting_training_leaves_the_first_place_to_a_higher_priority(cluster, until):
    holder = rk.run(time.sleep, 5, name="holder", cpus=2, priority="high")
    until(lambda: holder.refresh().started_at_unix_s)
    low = rk.train(loops.linear, 1, workers=2, spares=0, name="later", priority="low")
    until(lambda: low.refresh().reason)
    high = rk.train(loops.linear, 1, workers=2, spares=0, name="sooner")
    high.wait()
    assert low.refresh().started_at_unix_s is None or low.view.started_at_unix_s > high.view.ended_at_unix_s
    assert low.wait().result["step"] == 20


@pytest.mark.slow
def test_equals_share_and_one_that_ends_leaves_all_to_the_other(cluster, until):
    first = rk.train(loops.linear, 10_000, 0.02, workers=(1, 2), spares=0, name="first")
    until(lambda: first.refresh().world_size == 2)
    second = rk.train(loops.linear, 10, 0.01, workers=(1, 2), spares=0, name="second")
    until(lambda: second.refresh().world_size == 1)
    assert first.refresh().world_size == 1
    second.wait()
    until(lambda: first.refresh().world_size == 2)
    first.stop()
    until(lambda: first.refresh().ended)
