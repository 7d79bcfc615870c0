"""Training functions for tests; they travel by value."""

from __future__ import annotations


def linear(epochs: int, pause_s: float = 0.0) -> dict[str, object]:
    """Fit a plane; 20 steps an epoch. What it returns is a function of the steps alone."""
    import time

    import torch
    from torch.nn import functional

    import raykit as rk

    torch.manual_seed(0)
    model = torch.nn.Linear(10, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x = torch.randn(1000, 10)
    y = (x.sum(1) > 0).long()
    job = rk.elastic(model=model, optimizer=optimizer)
    for batch in job.batches({"x": x, "y": y}, batch_size=50, epochs=epochs):
        loss = functional.cross_entropy(model(batch["x"]), batch["y"])
        loss.backward()
        time.sleep(pause_s)
        job.commit(loss=loss)
    return {"step": job.step, "rows": job.num_rows, "weight": model.weight.detach().flatten().tolist()}


def alone(epochs: int) -> list[float]:
    """The same fit in one process with plain torch, over the same batches."""
    return alone_for(epochs * 20)


def alone_for(num_steps: int) -> list[float]:
    """The first steps of the same fit."""
    import torch
    from torch.nn import functional

    from raykit.engine.training.feed import global_batch

    torch.manual_seed(0)
    model = torch.nn.Linear(10, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x = torch.randn(1000, 10)
    y = (x.sum(1) > 0).long()
    for step in range(num_steps):
        at = torch.from_numpy(global_batch(1000, 50, 0, step))
        optimizer.zero_grad()
        functional.cross_entropy(model(x[at]), y[at]).backward()
        optimizer.step()
    return model.weight.detach().flatten().tolist()
