"""What a user gives Ray Train besides the loop: datasets, and settings of the run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import ray.data
from ray.train import FailureConfig, LoggingConfig, RunConfig

from raykit.engine.files import blocks
from raykit.engine.raydata_context import quiet
from raykit.engine.run import RunContext, UserCodeError, as_user_error
from raykit.spec import SourceSpec
from raykit.store.files import File, listed, path_source, resolved
from raykit.wire.payload import RAY_TRAIN
from raykit.wire.place import absolute

MAX_FAILURES = 3  # restarts after the loss of ranks, over the whole run; Ray Train's own default is none
MAX_FAILED_STARTS = 3  # Ray Train's own default is no limit: a run whose ranks cannot start would never end
DATA_CPUS = 1
"""CPUs that Ray Data needs besides those of the ranks, to read at all."""


class Given:
    """The extra of the run's payload, opened once."""

    def __init__(self, context: RunContext) -> None:
        """Open it."""
        self._payload = context.payload()
        given = self._payload.open_extra(RAY_TRAIN) if RAY_TRAIN in self._payload.extras else {}
        self._datasets: dict[str, Any] = dict(given.get("datasets") or {})
        self._run_config: RunConfig | None = given.get("run_config")

    @property
    def num_further_cpus(self) -> int:
        """CPUs that the run needs besides those of its ranks."""
        return DATA_CPUS if self._datasets else 0

    def datasets(self) -> dict[str, ray.data.Dataset]:
        """Make the datasets, by the names by which the loop asks for them.

        Raises:
            UserCodeError: a function of the user's raised, or a value is no data.
        """
        return {name: self._dataset(name, value) for name, value in self._datasets.items()}

    def run_config(self, *, name: str, storage_path: str, callbacks: list[Any]) -> RunConfig:
        """Return the settings of the run, those of the user's that raykit leaves to Ray Train among them."""
        theirs = self._run_config or RunConfig()
        known = {each.name: getattr(theirs, each.name) for each in fields(theirs)}
        failures = known["failure_config"] or FailureConfig()
        return RunConfig(
            # The same name and path each time: there Ray Train finds the checkpoints that it kept.
            **known
            | {
                "name": name,
                "storage_path": storage_path,
                "failure_config": FailureConfig(
                    max_failures=failures.max_failures or MAX_FAILURES, controller_failure_limit=MAX_FAILED_STARTS
                ),
                # Of what Ray Train says itself; the view says it too.
                "logging_config": LoggingConfig(log_level="WARNING"),
                "callbacks": [*(known["callbacks"] or ()), *callbacks],
            }
        )

    def _dataset(self, name: str, value: Any) -> ray.data.Dataset:
        try:
            made = value() if callable(value) and not hasattr(value, "iter_batches") else value
            if isinstance(made, str | os.PathLike):
                made = path_source(absolute(os.fspath(made)))  # Ray's tasks stand elsewhere
            if isinstance(made, SourceSpec):
                made = _dataset_of(resolved(made))
            elif hasattr(made, "iloc"):
                made = ray.data.from_pandas(made)
            elif isinstance(made, list):
                made = ray.data.from_items(made)
        except Exception as exc:
            raise as_user_error(exc, self._payload, f"the dataset {name!r}") from exc
        if not hasattr(made, "iter_batches"):
            raise UserCodeError(
                f"the dataset {name!r}",
                f"It is a {type(made).__name__}. Give a function that makes a Ray Dataset, a DataFrame, a list of rows, or a path.",
                "",
            )
        quiet(made.context)
        return made


def _dataset_of(source: SourceSpec) -> ray.data.Dataset:
    """Return the rows of files as a Ray Dataset, which reads them when it is gone through."""
    found = listed(source).files
    if source.format == "parquet" and not any(file.columns for file in found):
        return ray.data.read_parquet([file.path for file in found])
    return ray.data.from_items([{"file": number} for number in range(len(found))]).flat_map(partial(_rows, found, source))


def _rows(found: Sequence[File], source: SourceSpec, row: dict[str, int]) -> Iterator[dict[str, Any]]:
    for block, _, _ in blocks([found[row["file"]]], source):
        yield from block if isinstance(block, list) else block.to_pylist()
