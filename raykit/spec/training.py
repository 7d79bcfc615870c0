"""What an elastic training run wants."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

from raykit.errors import OptionError
from raykit.spec.options import amount, check_range, count, counts, counts_by_word, names, option, seconds
from raykit.spec.priority import Priority, check_priority, priority_option

LossCause = Literal["died", "hung", "node", "memory", "reclaimed"]
"""Why a worker was lost: its process ended, it hung, its node went or ran out of memory, or its slot was taken by force."""

ON_LOSS = ("shrink", "wait", "stop")

OF_BOTH_ENGINES = ("name", "workers", "cpus_per_worker", "gpus_per_worker", "outputs", "engine", "priority", "datasets")


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Every so many seconds, or every so many steps: one of the two."""

    seconds: float | None = None
    steps: int | None = None

    def is_over(self, seconds: float, steps: int) -> bool:
        """Say whether it is over when so much has passed since it began."""
        if self.steps is not None:
            return steps >= self.steps
        return self.seconds is not None and seconds >= self.seconds


def interval(value: str | float) -> Interval:
    """Read ``60s``, ``5m``, ``500steps``, or a number of seconds.

    Raises:
        OptionError: it is none of these.
    """
    text = str(value).strip()
    try:
        if not text.endswith(("step", "steps")):
            return Interval(seconds=seconds(text))
        if steps := count(text.removesuffix("s").removesuffix("step").strip()):
            return Interval(steps=steps)
    except ValueError:
        pass
    raise OptionError(f"{text!r} is no interval.", "Give a time or a number of steps, as 60s, 5m or 500steps.")


EACH_MINUTE = Interval(seconds=60.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSpec:
    """A training loop on ``min_workers`` to ``max_workers`` ranks, and the spares that wait beside them.

    Ranks come and go in replicas of ``group`` ranks each, which hold one model together. ``on_loss`` is one of
    ``ON_LOSS``, or the name of a function that travels in the payload.
    """

    name: str = option("NAME", default="train", help="how the run is called", read=str)
    workers: tuple[int, int] = option(
        "--workers", default=(1, 1), help="ranks: 2, or 1:4 for one to four", read=counts, metavar="MIN:MAX"
    )
    cpus_per_worker: float = option("--cpus", default=1.0, help="CPU slots of each rank", read=amount, metavar="N")
    gpus_per_worker: float = option("--gpus", default=0.0, help="GPUs of each rank", read=amount, metavar="N")
    group: int = option(
        "--group", default=1, help="ranks that hold one model together (FSDP, tensor parallel) and come and go together",
        read=count, metavar="N",
    )  # fmt: skip
    num_spares: int | None = option(
        "--spares", default=None, help="warm spares, which hold no slot (1; 0 on a small cluster)", read=count, metavar="N"
    )
    on_loss: str = option(
        "--on-loss", default="shrink", read=str, metavar="WORD",
        help="when a rank is lost: shrink, wait, stop, or a function of the notebook that is given the view and answers so",
    )  # fmt: skip
    max_losses: tuple[tuple[str, int], ...] = option(
        "--max-losses", default=(), read=counts_by_word, metavar="N",
        help="give up after more: 10, or by cause: died=5,hung=2,node=1,memory=1",
    )  # fmt: skip
    checkpoint_every: Interval = option(  # noqa: RUF009  (it makes a field)
        "--checkpoint-every", default=EACH_MINUTE, help="time between checkpoints, or 500steps", read=interval,
        metavar="60s",
    )  # fmt: skip
    checkpoint_to: str = option(
        "--checkpoint-to", default="", help="folder or fsspec URL of the checkpoints; the run's folder if not given", read=str,
        metavar="PATH",
    )  # fmt: skip
    checkpoints_kept: int = option("--checkpoints-kept", default=2, help="how many checkpoints are kept", read=count, metavar="N")
    from_checkpoint: str = option(
        "--from-checkpoint", default="", read=str, metavar="PATH",
        help="begin with the model of this checkpoint of another run, or of the newest in a folder of them, at step 0",
    )  # fmt: skip
    hang_after_s: float = option(
        "--hang-after", default=300.0, help="end a rank that works but keeps the others waiting for so long", read=seconds,
        metavar="5m",
    )  # fmt: skip
    lend_within_s: float = option(
        "--lend-within", default=30.0, read=seconds, metavar="30s",
        help="end a rank that has not come to a commit so long after a run that comes first wanted its slot",
    )  # fmt: skip
    outputs: tuple[str, ...] = option("-o", default=(), help="names that come back, from the first rank", read=names)
    priority: Priority = priority_option()  # noqa: RUF009  (it makes a field)
    datasets: str = option(
        "--datasets", default="", read=str, metavar="NAME",
        help="a dict of the notebook with the datasets of a loop of Ray Train, by name (with --engine ray-train)",
    )  # fmt: skip
    engine: Literal["raykit", "ray-train"] = option(
        "--engine", default="raykit", help="raykit, or ray-train for a train_loop_per_worker of Ray Train", read=str
    )

    def __post_init__(self) -> None:
        if self.engine not in ("raykit", "ray-train"):
            raise OptionError(f"--engine is {self.engine!r}.", "There are two: raykit and ray-train.")
        if self.engine == "ray-train":
            self._refuse_options_of_raykit()
        elif self.datasets:
            raise OptionError("--datasets are for Ray Train.", "Add --engine ray-train, or give the data to job.batches.")
        check_range("--workers", *self.workers, least=1)
        check_priority(self.priority)
        if self.group < 1 or any(workers % self.group for workers in self.workers):
            low, high = self.workers
            raise OptionError(f"--workers {low}:{high} are no groups of {self.group}.", "Give multiples of --group, as 2:8.")
        if self.checkpoints_kept < 1:
            raise OptionError("--checkpoints-kept is 0.", "Keep at least one: a run that loses all ranks begins there.")
        if not self.on_loss.isidentifier():
            raise OptionError(f"--on-loss is {self.on_loss!r}.", f"Give {', '.join(ON_LOSS)}, or the name of a function.")
        for cause, _ in self.max_losses:
            if cause and cause not in get_args(LossCause):
                raise OptionError(f"--max-losses: there is no cause {cause!r}.", f"There are: {', '.join(get_args(LossCause))}.")

    @property
    def min_workers(self) -> int:
        return self.workers[0]

    @property
    def max_workers(self) -> int:
        return self.workers[1]

    @property
    def min_replicas(self) -> int:
        return self.workers[0] // self.group

    @property
    def max_replicas(self) -> int:
        return self.workers[1] // self.group

    @property
    def demand(self) -> tuple[tuple[float, float], ...]:
        """The (CPUs, GPUs) of each slot without which the run cannot start."""
        return ((self.cpus_per_worker, self.gpus_per_worker),) * self.workers[0]

    def _refuse_options_of_raykit(self) -> None:
        for each in fields(self):
            if each.name not in OF_BOTH_ENGINES and getattr(self, each.name) != each.default:
                flag = each.metadata["option"][0][0]
                raise OptionError(f"{flag} has no effect on a loop of Ray Train.", f"Leave {flag} out, or --engine ray-train.")
