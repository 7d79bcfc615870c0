"""What an elastic training run wants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raykit.errors import OptionError
from raykit.spec.options import amount, check_range, count, counts, names, option, seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSpec:
    """A training loop on ``min_workers`` to ``max_workers`` ranks, and the spares that wait beside them."""

    name: str = option("NAME", default="train", help="how the run is called", read=str)
    workers: tuple[int, int] = option(
        "--workers", default=(1, 1), help="ranks: 2, or 1:4 for one to four", read=counts, metavar="MIN:MAX"
    )
    cpus_per_worker: float = option("--cpus", default=1.0, help="CPU slots of each rank", read=amount, metavar="N")
    gpus_per_worker: float = option("--gpus", default=0.0, help="GPUs of each rank", read=amount, metavar="N")
    num_spares: int | None = option(
        "--spares", default=None, help="warm spares, which hold no slot (1; 0 on a small cluster)", read=count, metavar="N"
    )
    checkpoint_every_s: float = option(
        "--checkpoint-every", default=60.0, help="seconds between checkpoints", read=seconds, metavar="60s"
    )
    hang_after_s: float = option(
        "--hang-after", default=300.0, help="end a rank that works but keeps the others waiting for so long", read=seconds,
        metavar="5m",
    )  # fmt: skip
    outputs: tuple[str, ...] = option("-o", default=(), help="names that come back, from the first rank", read=names)
    engine: Literal["raykit", "ray-train"] = option(
        "--engine", default="raykit", help="raykit, or ray-train for a train_loop_per_worker of Ray Train", read=str
    )

    def __post_init__(self) -> None:
        if self.engine not in ("raykit", "ray-train"):
            raise OptionError(f"--engine is {self.engine!r}.", "There are two: raykit and ray-train.")
        check_range("--workers", *self.workers, least=1)

    @property
    def min_workers(self) -> int:
        return self.workers[0]

    @property
    def max_workers(self) -> int:
        return self.workers[1]

    @property
    def demand(self) -> tuple[tuple[float, float], ...]:
        """The (CPUs, GPUs) of each slot without which the run cannot start."""
        return ((self.cpus_per_worker, self.gpus_per_worker),) * self.min_workers
