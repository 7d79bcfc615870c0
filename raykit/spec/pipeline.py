"""What a multi-stage pipeline wants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raykit.errors import OptionError
from raykit.spec.options import check_range


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpec:
    """One stage: what each of its replicas holds, and how rows reach it.

    ``batch_size=None`` is the row form (one row in; one row, or several by ``yield``, out); a number is the batch
    form (a dict of arrays whose first axis is the batch).
    """

    name: str
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    batch_size: int | None = None
    min_replicas: int = 1
    max_replicas: int = 1

    def __post_init__(self) -> None:
        check_range(f"replicas of stage {self.name}", self.min_replicas, self.max_replicas, least=1)
        if self.batch_size is not None and self.batch_size < 1:
            raise OptionError(f"batch of stage {self.name} is {self.batch_size}.", "Give at least 1, or leave it out for rows.")
        if self.num_cpus < 0 or self.num_gpus < 0:
            raise OptionError(f"stage {self.name} asks for less than nothing.", "Give cpus and gpus of zero or more.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSpec:
    """Where rows come from: ``items`` and ``dataset`` travel in the payload, ``path`` is read in the cluster."""

    form: Literal["items", "dataset", "path"]
    paths: tuple[str, ...] = ()
    format: str = ""
    label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSpec:
    """Stages in their order, the source, and where the rows go."""

    name: str = "pipeline"
    source: SourceSpec = SourceSpec(form="items")
    stages: tuple[StageSpec, ...] = ()
    limit: int | None = None
    output_path: str | None = None
    outputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for stage in self.stages:
            if stage.name in seen:
                raise OptionError(f"two stages are called {stage.name}.", "Give each stage a name of its own.")
            seen.add(stage.name)
        if self.limit == 0:
            raise OptionError("--limit is 0.", "Give at least 1, or leave it out for all rows.")

    @property
    def demand(self) -> tuple[tuple[float, float], ...]:
        """The (CPUs, GPUs) of each slot without which the run cannot start."""
        return tuple((stage.num_cpus, stage.num_gpus) for stage in self.stages for _ in range(stage.min_replicas))
