"""The training that every side of a benchmark runs: a model, its rows, and a mark on disk for each committed step."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BATCH = 48
NUM_ROWS = 40 * BATCH


def model(kind: str) -> Any:
    """Build the MLP of 5.0 M parameters or PyTorch's own CNN for (Fashion-)MNIST, from one seed."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    if kind == "mlp":
        return nn.Sequential(
            nn.Flatten(), nn.Linear(784, 1500), nn.ReLU(), nn.Linear(1500, 1500), nn.ReLU(), nn.Linear(1500, 1000), nn.ReLU(),
            nn.Linear(1000, 10),
        )  # fmt: skip
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


class Marks:
    """Each rank writes its process and its committed steps to a file of its own; whoever watches reads them all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, rank: int, step: int) -> None:
        with (self._folder / f"{os.getpid()}.marks").open("a") as file:
            file.write(f"{time.time()} {rank} {step}\n")

    def read(self) -> list[Mark]:
        """Give all marks by time."""
        found = []
        for file in self._folder.glob("*.marks"):
            for line in file.read_text().splitlines():
                parts = line.split()
                if len(parts) == 3:  # a process that was killed may have left half a line
                    found.append(Mark(at_s=float(parts[0]), rank=int(parts[1]), step=int(parts[2]), pid=int(file.stem)))
        return sorted(found, key=lambda mark: mark.at_s)

    def ask_to_stop(self) -> None:
        (self._folder / "stop").touch()

    @property
    def stop_asked(self) -> bool:
        return (self._folder / "stop").exists()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A committed step of a rank."""

    at_s: float
    rank: int
    step: int
    pid: int


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
