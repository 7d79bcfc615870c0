"""What a multi-stage pipeline wants."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from raykit.errors import OptionError
from raykit.spec.options import check_range
from raykit.spec.priority import Priority, check_priority

MIN_ROWS_FOR_SHARE = 100  # a share of fewer rows says nothing yet
ANY_REPLICAS = (1, 10_000)
"""The range of a stage's replicas where none is asked for: as many as make the pipeline fastest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpec:
    """One stage: what each of its replicas holds, and how rows reach it.

    ``batch_size=None`` is the row form (one row in; one row, or several by ``yield``, out); a number is the batch
    form (a dict of arrays whose first axis is the batch).

    ``on_error`` answers an exception of the user's code: ``fail`` ends the run, ``quarantine`` puts the row aside and goes
    on, ``retry:N`` tries N times more and then fails, ``call`` asks a function of the user's. ``max_bad`` bounds the rows
    put aside: a share below one, else a number; the run fails beyond it. ``timeout_s`` is for one call. ``num_threads`` is for
    the pools of torch, OpenMP and cv2; None gives them as many as the replica holds CPUs. ``max_cost`` bounds what the rows of
    a batch cost together, where the stage says what a row costs.
    """

    name: str
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    batch_size: int | None = None
    max_cost: float | None = None
    min_replicas: int = 1
    max_replicas: int = 1
    memory_bytes: int = 0
    concurrency: int = 1
    num_threads: int | None = None
    timeout_s: float | None = None
    on_error: str = "fail"
    max_bad: float | None = None
    runtime_env: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_range(f"replicas of stage {self.name}", self.min_replicas, self.max_replicas, least=1)
        if self.batch_size is not None and self.batch_size < 1:
            raise OptionError(f"batch of stage {self.name} is {self.batch_size}.", "Give at least 1, or leave it out for rows.")
        if self.max_cost is not None and (self.batch_size is None or self.max_cost <= 0):
            raise OptionError(
                f"max_cost of stage {self.name} is {self.max_cost:g}, batch is {self.batch_size}.",
                "Give a max_cost above 0, with batch= as the most rows of a batch.",
            )
        if self.num_cpus < 0 or self.num_gpus < 0 or self.memory_bytes < 0:
            raise OptionError(f"stage {self.name} asks for less than nothing.", "Give cpus, gpus and memory of zero or more.")
        if self.concurrency < 1:
            raise OptionError(f"concurrency of stage {self.name} is {self.concurrency}.", "Give at least 1.")
        if self.concurrency > 1 and self.batch_size is not None:
            raise OptionError(f"stage {self.name} has both batch and concurrency.", "Leave one out: a call takes a batch already.")
        if self.num_threads is not None and self.num_threads < 1:
            raise OptionError(f"threads of stage {self.name} is {self.num_threads}.", "Give at least 1, or leave it out.")
        if self.timeout_s is not None and self.timeout_s <= 0:
            raise OptionError(f"timeout_s of stage {self.name} is {self.timeout_s}.", "Give seconds above 0, or leave it out.")
        if self.max_bad is not None and self.max_bad < 0:
            raise OptionError(f"max_bad of stage {self.name} is {self.max_bad}.", "Give a number of rows, or a share below 1.")
        if not re.fullmatch(r"fail|quarantine|call|retry:[1-9]\d*", self.on_error):
            raise OptionError(
                f"on_error of stage {self.name} is {self.on_error!r}.", "Give 'fail', 'quarantine', 'retry:3' or a function."
            )

    @property
    def num_retries(self) -> int:
        """How often a call that raised is made again."""
        return int(self.on_error.partition(":")[2] or 0)

    def allows_bad(self, num_bad: int, num_rows: int) -> bool:
        """Say whether so many bad rows of so many taken are within the budget."""
        if self.max_bad is None:
            return True
        return num_bad <= (
            self.max_bad if self.max_bad >= 1 or self.max_bad == 0 else self.max_bad * max(num_rows, MIN_ROWS_FOR_SHARE)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSpec:
    """Where rows come from: ``items`` and a ``function`` travel in the payload, a ``path`` is read in the cluster.

    How the files of a path are read is said as in :class:`raykit.spec.files.FileOptions`; ``left_out`` names those that lie
    there and are no data.
    """

    form: Literal["items", "function", "path"]
    paths: tuple[str, ...] = ()
    format: str = ""
    label: str = ""
    encoding: str = ""
    separator: str = ""
    as_text: tuple[str, ...] = ()
    left_out: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSpec:
    """Stages in their order, the source, and where the rows go.

    ``cpu_share`` is below 1 where the cluster has fewer CPUs than one replica of each stage asks for: what part of them each holds.
    """

    name: str = "pipeline"
    source: SourceSpec = SourceSpec(form="items")
    stages: tuple[StageSpec, ...] = ()
    limit: int | None = None
    output_path: str | None = None
    outputs: tuple[str, ...] = ()
    priority: Priority = "normal"
    cpu_share: float = 1.0

    def __post_init__(self) -> None:
        check_priority(self.priority)
        seen: set[str] = set()
        for stage in self.stages:
            if stage.name in seen:
                raise OptionError(f"two stages are called {stage.name}.", "Give each stage a name of its own.")
            seen.add(stage.name)
        if self.limit == 0:
            raise OptionError("--limit is 0.", "Give at least 1, or leave it out for all rows.")

    def with_cpu_share(self, share: float) -> PipelineSpec:
        """Return the spec in which each stage holds this share of the CPUs that it asks for."""
        stages = tuple(replace(stage, num_cpus=stage.num_cpus * share) for stage in self.stages)
        return replace(self, stages=stages, cpu_share=share)

    @property
    def demand(self) -> tuple[tuple[float, float], ...]:
        """The (CPUs, GPUs) of each slot without which the run cannot start."""
        return tuple((stage.num_cpus, stage.num_gpus) for stage in self.stages for _ in range(stage.min_replicas))
