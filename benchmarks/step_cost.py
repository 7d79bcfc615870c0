"""What a failure-free training step costs under raykit, beside plain DistributedDataParallel.

Both run in the same two worker processes of a raykit run (gloo, one thread each), step by step in turn, on the same rows;
a second DDP beside the first states the noise. A step is: take the rows, forward, backward, reduce, optimizer step.
With ``--small`` a model of 7,850 parameters, whose step is nearly all communication, on 2, 4, 8 and 12 ranks.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _loops import BATCH, NUM_ROWS, model, rows
from _measure import ROUNDS, Figure, end_in_order, report

import raykit as rk

STEPS_A_ROUND = 60
WARM_UP = 5
RANKS = (2, 4, 8, 12)
Steps = dict[str, list[float]]


def main() -> None:
    end_in_order()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one short round: only whether it runs")
    parser.add_argument("--small", action="store_true", help="a model of 7,850 parameters on 2, 4, 8 and 12 ranks")
    options = parser.parse_args()
    quick = options.quick
    rounds, steps = (1, 5) if quick else (ROUNDS, STEPS_A_ROUND)
    home = Path(tempfile.mkdtemp(prefix="rk-"))
    os.environ["RAYKIT_HOME"] = str(home)
    try:
        rk.up("bench", num_cpus=2, object_store_bytes=100_000_000)
        figures: dict[str, Figure] = {}
        if options.small:
            for ranks in RANKS:
                figures |= figures_of("small", rounds, steps, with_goal=False, ranks=ranks)
        else:
            for model, goal in (("mlp", True), ("cnn", False)):
                figures |= figures_of(model, rounds, steps, with_goal=goal)
    finally:
        rk.down("bench")
        shutil.rmtree(home)
    report("step_cost", figures)


def figures_of(model: str, rounds: int, steps: int, *, with_goal: bool, ranks: int = 2) -> dict[str, Figure]:
    """Train, and return the ratio of raykit's step to DDP's, and of one DDP's to the other's."""
    run = rk.train(in_turn, model, rounds, steps, workers=ranks, spares=0, cpus=int(200 / ranks) / 100, name=f"{model}-{ranks}")
    times: Steps = run.wait().result
    model = f"{model}, {ranks} ranks" if model == "small" else model
    of_round = {
        name: [statistics.median(all_of_it[at : at + steps]) for at in range(0, len(all_of_it), steps)]
        for name, all_of_it in times.items()
    }
    ratios = [ours / theirs for ours, theirs in zip(of_round["raykit"], of_round["ddp"], strict=True)]
    noise = [one / other for one, other in zip(of_round["ddp again"], of_round["ddp"], strict=True)]
    spread = statistics.median(abs(each - 1) for each in noise)
    for name, medians in of_round.items():
        print(f"{model}, {name}: median step {statistics.median(medians) * 1e3:.2f} ms, worst round {max(medians) * 1e3:.2f} ms")
    print(
        f"{model}: raykit / ddp by round {[round(each, 3) for each in ratios]}, ddp again / ddp {[round(each, 3) for each in noise]}"
    )
    return {
        f"{model}: step, raykit / ddp": Figure(
            value=statistics.median(ratios), goal=f"<= {1.02 + spread:.4f}" if with_goal else None
        ),
        f"{model}: noise, ddp / ddp (median distance of the rounds from 1)": Figure(value=spread),
    }


def in_turn(kind: str, rounds: int, steps: int) -> Steps:
    """In a worker: the same steps by raykit, by DDP and by DDP again, each time from another one on; rank 0's times."""
    import time

    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    import raykit as rk
    from raykit.engine.training.feed import global_batch, share
    from raykit.engine.training.rows import Rows

    data = rows()
    epochs = 1 + (rounds * steps + WARM_UP) * BATCH // NUM_ROWS
    network = model(kind)
    job = rk.elastic(model=network, optimizer=torch.optim.AdamW(network.parameters(), lr=1e-3))
    table = Rows(data)
    loss_of = nn.functional.cross_entropy
    peers: dict[str, Callable[[], None]] = {}

    def join() -> None:
        meeting = (
            Path(tempfile.gettempdir()) / f"step-cost-{os.environ['RAYKIT_CLUSTER'].replace('/', '-')}-{kind}-{job.world_size}"
        )
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=job.rank, world_size=job.world_size)
        for name in ("ddp", "ddp again"):
            wrapped = DistributedDataParallel(model(kind))
            optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-3)

            def step(wrapped: Any = wrapped, optimizer: Any = optimizer) -> None:
                mine = share(global_batch(NUM_ROWS, BATCH, 0, job.step), job.rank, job.world_size)
                batch = table.take(mine)
                loss_of(wrapped(batch["x"]), batch["y"]).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            peers[name] = step

    times: Steps = {"raykit": [], "ddp": [], "ddp again": []}
    batches = iter(job.batches(data, batch_size=BATCH, epochs=epochs))

    def ours() -> None:
        batch = next(batches)
        loss_of(network(batch["x"]), batch["y"]).backward()
        job.commit()

    ours()  # the world is formed here
    join()
    sides = {"raykit": ours, **peers}
    for number in range(1 - WARM_UP, rounds * steps):
        order = list(sides)[number % 3 :] + list(sides)[: number % 3]
        for name in order:
            begun_s = time.perf_counter()
            sides[name]()
            if number >= 0:
                times[name].append(time.perf_counter() - begun_s)
    dist.destroy_process_group()
    return times


if __name__ == "__main__":
    main()
