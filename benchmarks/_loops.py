"""The training that every side of a benchmark runs: a model, its rows, and a mark on disk for each committed step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from _marks import Marks

BATCH = 48
NUM_ROWS = 40 * BATCH


def model(kind: str) -> Any:
    """Build the MLP of 5.0 M parameters, a small one of 7,850, or PyTorch's own CNN for (Fashion-)MNIST, from one seed."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    if kind == "mlp":
        return nn.Sequential(
            nn.Flatten(), nn.Linear(784, 1500), nn.ReLU(), nn.Linear(1500, 1500), nn.ReLU(), nn.Linear(1500, 1000), nn.ReLU(),
            nn.Linear(1000, 10),
        )  # fmt: skip
    if kind == "small":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    return nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(9216, 128),
        nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


def rows() -> dict[str, Any]:
    """Give random rows in Fashion-MNIST's shape: what is measured does not depend on what is learned."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return {
        "x": torch.randn(NUM_ROWS, 1, 28, 28, generator=generator),
        "y": torch.randint(0, 10, (NUM_ROWS,), generator=generator),
    }


def on_raykit(kind: str, folder: str) -> int:
    """In a worker of raykit: train until a person stops it."""
    import torch
    from torch.nn import functional

    import raykit as rk

    marks, network = Marks(Path(folder)), model(kind)
    job = rk.elastic(model=network, optimizer=torch.optim.AdamW(network.parameters(), lr=1e-3))
    for batch in job.batches(rows(), batch_size=BATCH, epochs=10_000):
        functional.cross_entropy(network(batch["x"]), batch["y"]).backward()
        if job.commit():
            marks.write(job.rank, job.step)
        if marks.stop_asked:
            job.stop()
    return int(job.step)


def counted(folder: str) -> dict[str, Any]:
    """In a worker of raykit: train a small network, and a parameter that counts how often each row was in a committed step."""
    import time

    import torch
    from torch import nn

    import raykit as rk

    torch.manual_seed(0)
    marks = Marks(Path(folder))
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    tally = nn.Embedding.from_pretrained(torch.zeros(NUM_ROWS, 1), freeze=False)
    optimizers = [torch.optim.AdamW(network.parameters(), lr=1e-3), torch.optim.SGD(tally.parameters(), lr=BATCH)]
    job = rk.elastic(model=nn.ModuleList([network, tally]), optimizer=optimizers)
    data = rows() | {"row": torch.arange(NUM_ROWS)}
    for batch in job.batches(data, batch_size=BATCH, epochs=100_000):
        time.sleep(0.02)
        loss = nn.functional.cross_entropy(network(batch["x"]), batch["y"])
        (loss + tally(batch["row"]).mean()).backward()
        job.commit(loss=loss)
        if marks.stop_asked:
            job.stop()
    return {"step": job.step, "rows": job.num_rows, "counts": (-tally.weight).flatten().tolist()}


def on_ray_train(settings: dict[str, Any]) -> None:
    """In a worker of Ray Train: plain DDP that takes up its checkpoint, as its documentation has it."""
    import tempfile

    import ray.train
    import torch
    from ray.train import Checkpoint
    from ray.train.torch import prepare_model
    from torch.nn import functional

    marks, data = Marks(Path(settings["folder"])), rows()
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(1)
    network = prepare_model(model(settings["kind"]))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    step = 0
    if (kept := ray.train.get_checkpoint()) is not None:
        with kept.as_directory() as path:
            state = torch.load(Path(path) / "state.pt")
        network.module.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    stop = torch.zeros(1)
    while not stop.item():
        at = torch.arange(step * BATCH + rank, (step + 1) * BATCH, world) % NUM_ROWS
        functional.cross_entropy(network(data["x"][at]), data["y"][at]).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        marks.write(rank, step)
        if step % settings["every"] == 0:
            with tempfile.TemporaryDirectory() as path:
                if rank == 0:
                    state = {"model": network.module.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                    torch.save(state, Path(path) / "state.pt")
                    ray.train.report({"step": step}, checkpoint=Checkpoint.from_directory(path))
                else:
                    ray.train.report({"step": step})
        stop.fill_(float(marks.stop_asked))
        torch.distributed.all_reduce(stop)


def on_torchft(settings: dict[str, Any]) -> None:
    """In a worker of Ray Train with torchft: each worker a replica group of its own, as Ray's example has it.

    Rows are dealt by the rank among those that take part, since torchft's own sampler is documented to lose some.
    """
    from datetime import timedelta

    import ray.train
    import torch
    from torch.nn import functional
    from torchft import DistributedDataParallel, Manager, ProcessGroupGloo

    class Parallel(DistributedDataParallel):
        """torchft 0.2.0's own hook fails an assertion in the survivors of a broken reduction."""

        @staticmethod
        def _comm_hook(state, bucket):  # torch would compare annotations with its own
            state.allreduce(bucket.buffer()).wait()
            done: Any = torch.futures.Future()
            done.set_result(bucket.buffer())
            return done

    marks, data = Marks(Path(settings["folder"])), rows()
    rank = ray.train.get_context().get_world_rank()
    timeout = timedelta(seconds=settings["operation_timeout_s"])
    torch.set_num_threads(1)
    network = model(settings["kind"])
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)

    def take(state: dict[str, Any]) -> None:
        network.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])

    manager = Manager(
        pg=ProcessGroupGloo(timeout=timeout),
        min_replica_size=1,
        load_state_dict=take,
        state_dict=lambda: {"model": network.state_dict(), "optimizer": optimizer.state_dict()},
        rank=0,
        world_size=1,
        replica_id=f"replica_{rank}",
        timeout=timeout,
    )
    parallel = Parallel(manager, network)
    while not marks.stop_asked:
        manager.start_quorum()
        optimizer.zero_grad(set_to_none=True)
        place, world, step = manager.participating_rank() or 0, manager.num_participants(), manager.current_step()
        at = torch.arange(step * BATCH + place, (step + 1) * BATCH, world) % NUM_ROWS
        functional.cross_entropy(parallel(data["x"][at]), data["y"][at]).backward()
        if manager.should_commit():
            optimizer.step()
            marks.write(rank, manager.current_step())
