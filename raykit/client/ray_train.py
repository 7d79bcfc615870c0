"""A ``TorchTrainer`` of Ray Train as a run of raykit's: taken apart here, put together again in the cluster.

The trainer is the user's object and its class Ray's, so that nothing of Ray is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raykit.errors import InputError

DEFAULT_STORAGE = str(Path("~/ray_results").expanduser())  # what Ray Train's RunConfig has where nothing was given


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerParts:
    """What a trainer says of its run."""

    loop: Callable[..., Any]
    config: dict[str, Any] | None
    datasets: Mapping[str, Any]
    run_config: Any
    workers: int | tuple[int, int]
    cpus: float
    gpus: float


def is_trainer(given: Any) -> bool:
    """Return whether this is a trainer of Ray Train."""
    return any(kind.__module__.startswith("ray.train") and kind.__name__ == "TorchTrainer" for kind in type(given).__mro__)


def parts_of(trainer: Any) -> TrainerParts:
    """Take a trainer apart.

    Raises:
        InputError: it asks for what raykit decides: where the run's files lie, or resources besides CPUs and GPUs.
    """
    scaling, run_config = trainer.scaling_config, trainer.run_config
    if run_config.storage_path not in (None, DEFAULT_STORAGE):
        raise InputError(
            f"The trainer's RunConfig has storage_path={run_config.storage_path!r}, and raykit keeps a run's files in its folder.",
            "Leave it out; run.output('checkpoint') is the path of the newest checkpoint.",
        )
    resources = dict(scaling.resources_per_worker or {})
    cpus, gpus = resources.pop("CPU", 1.0), resources.pop("GPU", 1.0 if scaling.use_gpu else 0.0)
    if resources:
        raise InputError(f"The trainer's workers ask for {', '.join(resources)}.", "Ask for CPUs and GPUs.")
    return TrainerParts(
        loop=trainer.train_loop_per_worker,
        config=trainer.train_loop_config,
        datasets=trainer.datasets,
        run_config=run_config,
        workers=scaling.num_workers,
        cpus=cpus,
        gpus=gpus,
    )
