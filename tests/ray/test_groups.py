"""Replicas of several ranks: FSDP and tensor parallel inside, elastic across."""

import os
import signal

import pytest

import raykit as rk

pytestmark = pytest.mark.ray

ROWS, BATCH, EPOCHS = 90, 13, 12  # a batch that neither two replicas nor their ranks divide, and a last one of 12


def learn(kind, pause_s=0.0):
    """Train a small model in float64, plain, by FSDP or tensor parallel; give its whole weights, the steps and the rows."""
    import time

    import torch
    from torch import nn
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor
    from torch.nn import functional

    import raykit as rk

    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(ROWS, 8, generator=generator), torch.randint(0, 3, (ROWS,), generator=generator)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    if kind == "fsdp":
        fully_shard(model)
    if kind == "tensor":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

        parallelize_module(model, init_device_mesh("cpu", (2,)), {"0": ColwiseParallel(), "2": RowwiseParallel()})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 20, gamma=0.5)
    job = rk.elastic(model=model, optimizer=optimizer, scheduler=schedule)
    for batch in job.batches({"x": x, "y": y}, batch_size=BATCH, epochs=EPOCHS, shared_in_group=kind == "tensor"):
        loss = functional.cross_entropy(model(batch["x"]), batch["y"])
        loss.backward()
        time.sleep(pause_s)
        job.commit(loss=loss)
    whole = [each.full_tensor() if isinstance(each, DTensor) else each for each in model.parameters()]
    return [float(value) for each in whole for value in each.detach().flatten()], job.step, job.num_rows


@pytest.fixture(scope="module")
def wide(raykit_home):
    """A cluster with slots for two replicas of two ranks, and a spare beside them."""
    yield rk.up("groups", num_cpus=4, object_store_bytes=100_000_000)
    rk.down("groups")


@pytest.fixture(scope="module")
def alone(wide):
    """What one process learns."""
    rk.use("groups")
    return rk.train(learn, "plain", name="alone").wait().result


@pytest.mark.parametrize("kind", [pytest.param("fsdp", marks=pytest.mark.slow), "tensor"])
def test_two_replicas_of_two_ranks_learn_what_one_process_learns(alone, kind):
    rk.use("groups")
    run = rk.train(learn, kind, workers=4, group=2, spares=0, name=f"{kind}-whole").wait()
    assert run.result[1:] == alone[1:] == (7 * EPOCHS, ROWS * EPOCHS)
    assert run.result[0] == pytest.approx(alone[0], rel=1e-9, abs=1e-11)


@pytest.mark.parametrize("kind", ["fsdp", pytest.param("tensor", marks=pytest.mark.slow)])
def test_a_lost_rank_takes_its_replica_out_and_a_spare_replica_joins(alone, until, kind):
    rk.use("groups")
    run = rk.train(learn, kind, 0.15, workers=(2, 4), group=2, name=f"{kind}-hurt")
    until(lambda: run.refresh().world_size == 4 and any(rank.rank is None and rank.ready for rank in run.view.ranks))
    os.kill(next(rank.pid for rank in run.view.ranks if rank.rank == 1), signal.SIGKILL)
    until(lambda: run.refresh().cards and run.view.world_size == 4)
    run.wait()
    assert run.result[0] == pytest.approx(alone[0], rel=1e-9, abs=1e-11)
    assert run.result[1:] == alone[1:]
    card = run.view.cards[0]
    assert card.title == "rank 0, rank 1 (w1.0, w1.1) were lost"
    assert card.good


def test_a_sharded_run_whose_ranks_all_die_is_put_together_again_from_its_checkpoint(alone, until):
    rk.use("groups")
    run = rk.train(learn, "fsdp", 0.1, workers=2, group=2, spares=0, checkpoint_every="10steps", name="fsdp-lost")
    until(lambda: (run.refresh().checkpoint_step or 0) >= 20)
    for rank in [rank for rank in run.view.ranks if rank.rank is not None]:
        os.kill(rank.pid, signal.SIGKILL)
    run.wait()
    assert run.result[0] == pytest.approx(alone[0], rel=1e-9, abs=1e-11)
    assert run.result[1:] == alone[1:]
    weights = run.state_dict()
    assert weights["0.weight"].shape == (16, 8)
    assert [float(value) for each in weights.values() for value in each.flatten()] == pytest.approx(alone[0], rel=1e-9, abs=1e-11)
