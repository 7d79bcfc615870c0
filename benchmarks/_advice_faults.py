"""Faults that a pipeline of a user may have, drawn at random, each with what would be right to say of it.

All but the threads are emulated: a stage sleeps as long as its rows cost, in slots that stand for CPUs and GPUs.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import raykit as rk

GPUS = 4
MATRIX = 400
GB = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A pipeline with a fault.

    ``names`` is what an advice changes that is right: the stage, and one of the fields of ``StageChange``; no stage stands
    for a slow source. ``mended`` are the stages and the source without it, where that is not for ``%ray apply`` to do.
    """

    kind: str
    stages: tuple[Callable[..., Any], ...]
    source: Callable[[], Iterator[int]]
    names: tuple[str, tuple[str, ...]]
    cluster: dict[str, Any] = field(default_factory=lambda: {"num_cpus": 12, "num_simulated_gpus": GPUS})
    mended: tuple[tuple[Callable[..., Any], ...], Callable[[], Iterator[int]]] | None = None


def endless() -> Iterator[int]:
    return itertools.count()


def draw(seed: int, count: int) -> Iterator[Fault]:
    """Give so many faults, each kind about as often as the others."""
    rng = random.Random(seed)
    kinds = [few_replicas, fed_by_one_cpu, small_batch, crowded, memory_bound, holds_cpus, one_at_a_time, slow_source, slow_writer]
    for number in range(count):
        if number % len(kinds) == 0:
            rng.shuffle(kinds)
        yield kinds[number % len(kinds)](rng)


def few_replicas(rng: random.Random) -> Fault:
    """A model that may run on one GPU only."""
    model = emulated("model", row_s=rng.uniform(0.04, 0.15), batch=rng.choice((4, 8)), cpus=0, gpus=1, replicas=1)
    decode = emulated("decode", row_s=0.02, replicas=(1, 8))
    return Fault(kind="too few replicas", stages=(decode, model), source=endless, names=("model", ("max_replicas",)))


def fed_by_one_cpu(rng: random.Random) -> Fault:
    """A model on GPUs whose input comes from one CPU."""
    decode_s = rng.uniform(0.1, 0.3)
    model = emulated("model", row_s=decode_s / rng.uniform(2, 6), batch=8, cpus=0, gpus=1, replicas=(1, 2))
    decode = emulated("decode", row_s=decode_s, replicas=1)
    return Fault(kind="GPU stage fed by one CPU", stages=(decode, model), source=endless, names=("decode", ("max_replicas",)))


def small_batch(rng: random.Random) -> Fault:
    """A model whose calls cost much and whose rows little."""
    call_s = rng.uniform(0.05, 0.3)
    model = emulated(
        "model",
        call_s=call_s,
        row_s=call_s / rng.uniform(20, 80),
        batch=rng.choice((2, 4)),
        cpus=0,
        gpus=1,
        replicas=(1, rng.randint(1, GPUS)),
    )
    decode = emulated("decode", row_s=0.002, replicas=(1, 4))
    cluster = {"num_cpus": 12, "num_simulated_gpus": model.__raykit_stage__.max_replicas}
    return Fault(kind="small batch", stages=(decode, model), source=endless, names=("model", ("batch_size",)), cluster=cluster)


def crowded(rng: random.Random) -> Fault:
    """A model that takes more threads than it holds CPUs, and takes them when it is warm: this one computes."""
    threads = rng.randint(6, 12)

    class Crunch:
        def __init__(self) -> None:
            import torch

            self.weights, self.is_set = torch.rand(MATRIX, MATRIX), False

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            import torch

            if not self.is_set:
                torch.set_num_threads(threads)
                self.is_set = True
            for _ in batch["item"]:
                (self.weights @ self.weights).sum().item()
            return batch

    crunch = rk.stage(cpus=1, batch=4, replicas=(1, 2), name="crunch")(Crunch)
    names = ("crunch", ("num_threads", "batch_size"))
    return Fault(kind="too many threads", stages=(crunch,), source=endless, names=names, cluster={"num_cpus": 2})


def memory_bound(rng: random.Random) -> Fault:
    """A stage that holds far more memory than it uses."""
    large = emulated("large", row_s=rng.uniform(0.05, 0.2), memory=int(rng.uniform(4, 6) * GB), replicas=(1, 8))
    return Fault(kind="memory-bound", stages=(large,), source=endless, names=("large", ("memory_bytes",)))


def holds_cpus(rng: random.Random) -> Fault:
    """A stage that holds CPUs and waits."""
    waits = emulated("waits", row_s=rng.uniform(0.05, 0.2), cpus=rng.choice((3, 4, 6)), replicas=(1, 8))
    return Fault(kind="holds CPUs and waits", stages=(waits,), source=endless, names=("waits", ("num_cpus",)))


def one_at_a_time(rng: random.Random) -> Fault:
    """An async stage that makes one call at a time."""
    row_s = rng.uniform(0.05, 0.2)

    async def fetch(row: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(row_s)
        return row

    stage = rk.stage(cpus=1, replicas=(1, rng.randint(1, 3)), name="fetch")(fetch)
    return Fault(kind="one call at a time", stages=(stage,), source=endless, names=("fetch", ("concurrency",)))


def slow_source(rng: random.Random) -> Fault:
    """A source that is slower than every stage."""
    pause_s, row_s = rng.uniform(0.05, 0.2), rng.uniform(0.01, 0.03)

    def slow() -> Iterator[int]:
        for number in itertools.count():
            time.sleep(pause_s)
            yield number

    stages = (emulated("decode", row_s=row_s), emulated("model", row_s=row_s, cpus=0, gpus=1))
    return Fault(kind="slow source", stages=stages, source=slow, names=("", ()), mended=(stages, endless))


def slow_writer(rng: random.Random) -> Fault:
    """A last stage that writes slowly, one row after the other."""
    write = emulated("write", row_s=rng.uniform(0.1, 0.3), cpus=1, replicas=1)
    model = emulated("model", row_s=0.05, batch=4, cpus=0, gpus=1, replicas=(1, GPUS))
    return Fault(kind="slow writer", stages=(model, write), source=endless, names=("write", ("max_replicas",)))


def emulated(name: str, *, row_s: float, call_s: float = 0.0, batch: int | None = None, cpus: float = 1, **options: Any) -> Any:
    """Give a stage that sleeps ``call_s`` a call and ``row_s`` a row."""

    class Sleeps:
        def __call__(self, given: dict[str, Any]) -> dict[str, Any]:
            rows = 1 if batch is None else len(given["item"])
            time.sleep(call_s + row_s * rows)
            return given

    return rk.stage(cpus=cpus, batch=batch, name=name, **{"replicas": 1, **options})(Sleeps)
