"""Every touch of Ray Data, its private parts among them; tests/ray/test_raydata_contract.py pins those on Ray 2.60."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import ray.data
from ray.data import ActorPoolStrategy
from ray.data._internal.execution.execution_callback import ExecutionCallback

from raykit.engine.pipeline.stages import StageWorker
from raykit.engine.raydata_context import quiet
from raykit.events import Event, StageEnded, StageSampled
from raykit.spec import StageSpec

SAMPLE_S = 0.5
_RUN = "raykit.run"

READERS: dict[str, tuple[str, dict[str, Any]]] = {
    "parquet": ("read_parquet", {}),
    "csv": ("read_csv", {}),
    "json": ("read_json", {}),
    "images": ("read_images", {"include_paths": True, "mode": "RGB"}),
    "text": ("read_text", {"include_paths": True}),
    "binary": ("read_binary_files", {"include_paths": True}),
}


def from_items(rows: list[dict[str, Any]]) -> Any:
    """Make a dataset of rows, in blocks small enough that every stage has work soon."""
    return ray.data.from_items(rows, override_num_blocks=max(1, min(len(rows), 64)))


def read(format_: str, paths: list[str]) -> Any:
    """Read files; reading holds no slot of its own, so that a pipeline on two CPUs is not held up by its reader."""
    reader, options = READERS[format_]
    return getattr(ray.data, reader)(paths, num_cpus=0, **options)


class _Rows(StageWorker):
    def __call__(self, row: dict[str, Any]) -> Any:
        return self.rows(row)


class _Batches(StageWorker):
    def __call__(self, batch: dict[str, Any]) -> Any:
        yield from self.batches(batch)


def add_stage(dataset: Any, spec: StageSpec, arguments: dict[str, Any]) -> Any:
    """Give the dataset with one more stage, an actor pool of its own that Ray Data fuses with no neighbour."""
    pool = ActorPoolStrategy(min_size=spec.min_replicas, max_size=spec.max_replicas, initial_size=spec.min_replicas)
    options = {"compute": pool, "num_cpus": spec.num_cpus, "num_gpus": spec.num_gpus or None, "fn_constructor_kwargs": arguments}
    if spec.batch_size is None:
        return dataset.flat_map(_Rows, **options)
    return dataset.map_batches(_Batches, batch_size=spec.batch_size, **options)


class Execution:
    """One consumption of a dataset: quiet, sampled, and to be cancelled from another thread."""

    _of_run: ClassVar[dict[str, Execution]] = {}

    def __init__(self, run: str, stages: Sequence[StageSpec], sampled: Callable[[Sequence[Event]], None]) -> None:
        self._run, self._stages, self._sampled = run, stages, sampled
        self._executor: Any = None
        self._cancelled = threading.Event()
        self._sampled_s = 0.0

    def tables(self, dataset: Any) -> Iterator[Any]:
        """Run the dataset and give its rows as ``pyarrow.Table`` blocks, in this process.

        Rows come to the host rather than to write tasks: those would start a worker process a block on a cluster whose
        slots the stages hold, which cost a second each when it was tried.

        Raises:
            CancelledError: ``cancel`` was called. Ray Data itself ends without an error then.
        """
        self._of_run[self._run] = self
        context = dataset.context
        context.custom_execution_callback_classes = [_Probe]
        context.set_config(_RUN, self._run)
        context.actor_task_retry_on_errors = False
        quiet(context)
        try:
            yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
        finally:
            self._of_run.pop(self._run, None)
        if self._cancelled.is_set():
            raise CancelledError

    def cancel(self) -> None:
        """End the execution and its actors now; blocking for a fraction of a second."""
        self._cancelled.set()
        if self._executor is not None:
            self._executor.shutdown(force=True, exception=CancelledError())

    def begun(self, executor: Any) -> None:
        self._executor = executor
        if self._cancelled.is_set():
            threading.Thread(target=self.cancel, daemon=True).start()

    def step(self, executor: Any) -> None:
        if time.monotonic() - self._sampled_s < SAMPLE_S:
            return
        self._sampled_s = time.monotonic()
        self._sampled(list(_samples(executor, self._stages)))

    def ended(self, executor: Any) -> None:
        self._sampled(list(_totals(executor, self._stages)))


class CancelledError(Exception):
    """The execution was cancelled."""


class _Probe(ExecutionCallback):
    """Finds the execution that it belongs to by the run's name: Ray Data pickles the class, not an object."""

    def before_execution_starts(self, executor: Any) -> None:
        if execution := self._mine(executor):
            execution.begun(executor)

    def on_execution_step(self, executor: Any) -> None:
        execution = self._mine(executor)
        try:
            if execution:
                execution.step(executor)
        except Exception:  # a sample must never fail the dataset
            logging.getLogger(__name__).exception("a sample was lost")

    def after_execution_succeeds(self, executor: Any) -> None:
        if execution := self._mine(executor):
            execution.ended(executor)

    def _mine(self, executor: Any) -> Execution | None:
        return Execution._of_run.get(executor._data_context.get_config(_RUN))  # noqa: SLF001


def _samples(executor: Any, stages: Sequence[StageSpec]) -> Iterator[StageSampled]:
    for stage, (operator, state) in zip(stages, _pooled(executor), strict=False):
        yield StageSampled(
            stage=stage.name,
            num_replicas=operator.metrics.num_alive_actors,
            queued_blocks=state.total_enqueued_input_blocks(),
        )


def _totals(executor: Any, stages: Sequence[StageSpec]) -> Iterator[StageEnded]:
    for stage, (operator, _) in zip(stages, _pooled(executor), strict=False):
        metrics = operator.metrics
        yield StageEnded(stage=stage.name, rows_in=metrics.num_row_inputs_received, rows_out=metrics.row_outputs_taken)


def _pooled(executor: Any) -> list[Any]:
    """Operators with a pool stand in the topology in the order in which their stages were added."""
    return [item for item in executor._topology.items() if item[0].get_autoscaling_actor_pools()]  # noqa: SLF001
