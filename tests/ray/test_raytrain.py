"""Loops of Ray Train, unchanged, as runs of raykit."""

import os
import signal
from pathlib import Path

import pytest

import raykit as rk
from raykit.client.capture import capture_cell
from raykit.client.run import start
from raykit.errors import CellError, InputError, OptionError, RunError, RunFailedError, RunStoppedError
from raykit.spec import TrainSpec

pytestmark = pytest.mark.ray

BROKEN = """

import ray.train

def train_loop_per_worker(config):
    print("with", config["key"])
    if ray.train.get_context().get_world_rank() == 1:
        {}[config["key"]]
    ray.train.report({"loss": 1.0})

train_loop_config = {"key": "lost"}
"""


def ddp(config):
    """Fit a plane as Ray's own examples do, with a checkpoint a step; step 3 waits for the gate, where there is one."""
    import tempfile
    import time
    from pathlib import Path

    import ray.train.torch
    import torch

    model = ray.train.torch.prepare_model(torch.nn.Linear(4, 1))
    plain = getattr(model, "module", model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    first = 1
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            saved = torch.load(Path(folder) / "state.pt")
        plain.load_state_dict(saved["model"])
        first = saved["step"] + 1
    print("from step", first)
    for step in range(first, config["steps"] + 1):
        while step == 3 and "gate" in config and not Path(config["gate"]).exists():
            time.sleep(0.02)
        loss = model(torch.ones(8, 4)).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if ray.train.get_context().get_world_rank() == 0:
                torch.save({"model": plain.state_dict(), "step": step}, Path(folder) / "state.pt")
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report({"loss": loss.item(), "step": step, "model": type(model).__name__}, checkpoint=checkpoint)


def _left():
    """Say what Ray Train has left in the cluster."""
    import ray

    kinds = ("TrainController", "RayTrainWorker", "SynchronizationActor", "PreemptionWatcher", "PlacementGroupCleaner")
    groups = [each["placement_group_id"] for each in ray.util.placement_group_table().values() if each["state"] != "REMOVED"]
    living = [each for each in ray._private.state.state.actor_table(None).values() if each["State"] != "DEAD"]
    actors = [each["ActorClassName"] for each in living if each["ActorClassName"] in kinds]
    try:
        coordinator = ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
        claims = ray.get(
            coordinator.__ray_call__.remote(lambda it: [each for each in it._ongoing_reqs if each.startswith("train-")])
        )
    except ValueError:
        claims = []
    return groups + claims + actors


def _is_left_clean(until):
    until(lambda: not rk.run(_left, cpus=0).wait().result)
    until(lambda: rk.status().num_cpus_free == 2)


def test_a_loop_runs_unchanged_and_its_reports_are_seen(cluster):
    run = rk.train(ddp, {"steps": 3}, workers=2, engine="ray-train", name="unchanged").wait()
    assert {name: run.result[name] for name in ("step", "model")} == {"step": 3, "model": "DistributedDataParallel"}
    assert dict(run.view.metrics) == {"loss": run.result["loss"], "step": 3.0}
    assert (run.view.step, run.view.checkpoint_step, run.view.world_size) == (3, 3, 2)
    assert {(rank.rank, rank.device) for rank in run.view.ranks} == {(0, "cpu"), (1, "cpu")}
    assert [line.text for line in run.view.lines if line.text.startswith("from")] == ["from step 1"]
    assert "rank-1 | from step 1" in run.logs()
    assert all(slot.released_at_unix_s for slot in run.view.slots)
    assert len(run.view.slots) == 2
    assert (Path(run.output("checkpoint")) / "state.pt").is_file()
    assert run.view.cards == ()


@pytest.mark.slow
def test_an_error_of_the_loop_comes_home_with_its_line_and_nothing_is_tried_again(cluster, until):
    payload = capture_cell(BROKEN, {}, title="Cell In[7]")
    run = start(TrainSpec(name="wrong-key", workers=(2, 2), engine="ray-train"), payload)
    with pytest.raises(RunFailedError, match="wrong-key failed in rank 1: KeyError: 'lost'") as caught:
        run.wait()
    assert caught.value.traceback_text == (
        "Traceback (most recent call last):\n"
        '  File "Cell In[7]", line 8, in train_loop_per_worker\n'
        '    {}[config["key"]]\n'
        "KeyError: 'lost'\n"
    )
    assert run.view.generation == 1
    _is_left_clean(until)


@pytest.mark.slow
def test_a_metric_comes_back_by_its_name_and_one_that_was_never_reported_is_said(cluster):
    text = "def train_loop_per_worker():\n    import ray.train\n    ray.train.report({'loss': 0.5})"
    spec = TrainSpec(name="named", engine="ray-train", outputs=("loss", "accuracy"))
    run = start(spec, capture_cell(text, {}, title="Cell In[1]"))
    with pytest.raises(
        RunFailedError, match="-o accuracy: the loop reported no metric of that name; there are: checkpoint, loss, result"
    ):
        run.wait()
    assert run.output("loss") == 0.5


def test_a_rank_that_is_killed_costs_a_restart_from_the_checkpoint_and_a_card_says_so(cluster, until, tmp_path):
    gate = tmp_path / "gate"
    run = rk.train(ddp, {"steps": 4, "gate": str(gate)}, workers=2, engine="ray-train", name="hit")
    until(lambda: run.refresh().step == 2)
    with pytest.raises(RunError, match="neither drills nor another size"):
        run.drill()
    os.kill(next(rank.pid for rank in run.view.ranks if rank.rank == 1), signal.SIGKILL)
    gate.touch()
    run.wait()
    assert run.result["step"] == 4
    assert run.view.generation == 2
    (card,) = run.view.cards
    facts = dict(card.facts)
    assert "rank 1 (w2)" in card.title  # and rank 0, if it noticed first that its peer was gone
    assert facts["found"] == "not known"
    assert facts["lost"] == "0 committed steps; not known what was in flight"
    assert facts["world"] == "2 → 2"
    assert facts["done"] == "Ray Train started new workers (w3, w4) from the checkpoint of step 2"
    assert facts["next commit"].startswith("step 3, ")


@pytest.mark.slow
def test_a_host_that_comes_back_goes_on_from_the_newest_checkpoint_and_leaves_nothing(cluster, until, tmp_path):
    gate = tmp_path / "gate"
    run = rk.train(ddp, {"steps": 4, "gate": str(gate)}, engine="ray-train", name="rehosted")
    until(lambda: run.refresh().step == 2)
    run.drill("kill-host")
    until(lambda: run.refresh().host_attempts == 2)
    gate.touch()
    assert run.wait().result["step"] == 4
    assert [line.text for line in run.view.lines if line.text.startswith("from")] == ["from step 1", "from step 3"]
    assert [(rank.worker, rank.lost) for rank in run.view.ranks] == [("w1", True), ("w2", False)]
    _is_left_clean(until)


@pytest.mark.slow
def test_a_loop_of_a_range_takes_the_slots_that_are_free_and_is_resumed_from_its_newest_checkpoint(cluster, until, tmp_path):
    def hold():
        import time

        print("held")
        time.sleep(600)

    gate = tmp_path / "gate"
    holder = rk.run(hold, name="holder")
    until(lambda: holder.refresh().lines)
    run = rk.train(ddp, {"steps": 4, "gate": str(gate)}, workers=(1, 2), engine="ray-train", name="ranged")
    until(lambda: run.refresh().step == 2)
    assert run.view.world_size == 1
    holder.stop()
    run.stop()
    with pytest.raises(RunStoppedError, match="at step 2"):
        run.wait()
    assert run.result["step"] == 2
    _is_left_clean(until)
    gate.touch()
    resumed = rk.resume("ranged").wait()
    assert resumed.result["step"] == 4
    assert resumed.view.world_size == 2
    assert [line.text for line in resumed.view.lines if line.text.startswith("from")] == ["from step 3"]


@pytest.mark.slow
def test_a_start_that_fails_says_why_and_leaves_nothing(own, until):
    own("pretended", num_gpus=1)
    with pytest.raises(RunFailedError, match=r"Ray Train: .*NCCL"):
        rk.train(ddp, {"steps": 1}, gpus=1, engine="ray-train").wait()
    _is_left_clean(until)


def test_what_ray_train_cannot_call_is_refused_before_anything_starts():
    with pytest.raises(CellError, match="def train_loop_per_worker"):
        rk.train(3, engine="ray-train")
    with pytest.raises(InputError, match="Put it all into the config"):
        rk.train(ddp, {}, 3, engine="ray-train")
    with pytest.raises(OptionError, match="--spares has no effect"):
        rk.train(ddp, {}, spares=1, engine="ray-train")
