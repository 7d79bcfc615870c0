"""How long ranks take to sum what is small: told to all at once, beside gloo's all-reduce, over as many processes on loopback.

24 numbers of eight bytes, as the signs and metrics of a step, each 50 ms as between micro-batches, in processes of a low
priority as Ray's workers are. Rounds take turns, in the same groups.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from _measure import Figure, end_in_order, report

from raykit.engine.training.collective import OPERATION_TIMEOUT, Group
from raykit.engine.training.rendezvous import open_store

HOST = "127.0.0.1"
RANKS, QUICK_RANKS = (2, 5, 8), (2,)
ROUNDS, SUMS, WARM_UP = 5, 40, 5
NUMBERS = 24
PAUSE_S = 0.05
NICE = 15


def main() -> None:
    end_in_order()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two ranks, one round: only whether it runs")
    quick = parser.parse_args().quick
    figures = {}
    for num_ranks in QUICK_RANKS if quick else RANKS:
        store, address = open_store(HOST)
        told = mp.get_context("spawn").SimpleQueue()
        mp.spawn(rank, args=(num_ranks, address, 1 if quick else ROUNDS, told), nprocs=num_ranks)
        del store
        mine, gloo = told.get()
        print(f"{num_ranks} ranks: raykit {_ms(mine)} ms, gloo {_ms(gloo)} ms", flush=True)
        ratios = [ours / theirs for ours, theirs in zip(mine, gloo, strict=True)]
        figures[f"raykit / gloo's all-reduce, {num_ranks} ranks, median"] = Figure(value=statistics.median(ratios))
        figures[f"raykit / gloo's all-reduce, {num_ranks} ranks, worst"] = Figure(value=max(ratios))
    report("small_sums", {} if quick else figures)


def rank(place: int, num_ranks: int, address: tuple[str, int], rounds: int, told: Any) -> None:
    """Sum with the others, and tell the medians of each round as the second rank sees them."""
    os.nice(NICE)
    torch.set_num_threads(1)
    group = Group(
        store=address,
        host=HOST,
        prefix="sums",
        rank=place,
        world_size=num_ranks,
        device=torch.device("cpu"),
        outdated=lambda: False,
        given_up=lambda: False,
    )
    numbers = torch.zeros(NUMBERS, dtype=torch.float64)
    options = dist.AllreduceOptions()
    options.timeout = OPERATION_TIMEOUT

    def gloo() -> None:
        group._gloo.allreduce([numbers], options).wait()  # noqa: SLF001  (the peer, in the same group)

    def mine() -> None:
        group.wait(group.reduce(numbers))

    took = [(median_s(mine), median_s(gloo)) for _ in range(rounds)]
    if place == 1:
        told.put(tuple(zip(*took, strict=True)))
    group.close()


def median_s(add_up: Callable[[], None]) -> float:
    took_s = []
    for _ in range(WARM_UP + SUMS):
        time.sleep(PAUSE_S)
        begun_s = time.perf_counter()
        add_up()
        took_s.append(time.perf_counter() - begun_s)
    return statistics.median(took_s[WARM_UP:])


def _ms(took_s: tuple[float, ...]) -> list[float]:
    return [round(1000 * each, 2) for each in took_s]


if __name__ == "__main__":
    main()
