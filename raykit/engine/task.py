"""A run of one cell or function on one node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

from raykit.commands import Command, Hurry, Stop
from raykit.engine.folder import RunFolder
from raykit.engine.reporter import Reporter, captured
from raykit.engine.run import RunContext, StoppedError, UserCodeError, as_user_error, logged, outlive_node_loss, save_outputs
from raykit.engine.threads import limit_threads
from raykit.errors import RunError
from raykit.events import Event, RunStarted, SlotsHeld, SlotsReleased
from raykit.policy.failure import Pulse
from raykit.spec import TaskSpec

HOLDER = "cell"


class TaskRun:
    """Drives one Ray task."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._task: Any = None

    def execute(self) -> None:
        context = self._context
        spec: TaskSpec = context.spec
        if context.stop_asked.is_set():
            raise StoppedError
        if context.attempt > 1:
            raise UserCodeError(HOLDER, "The run's host died, and the cell's process with it. Run the cell again.", "")
        options = _work.options(num_cpus=spec.num_cpus, num_gpus=spec.num_gpus, max_retries=0)
        self._task = options.remote(context.host, context.run_folder, spec)
        if context.stop_asked.is_set():  # while there was no task to cancel
            ray.cancel(self._task, force=True)
        try:
            context.emit(*ray.get(self._task))
        except ray.exceptions.TaskCancelledError as exc:
            raise StoppedError from exc
        except ray.exceptions.RayTaskError as exc:
            if isinstance(exc.cause, UserCodeError):
                raise exc.cause from None
            raise
        except ray.exceptions.RayError as exc:
            if context.stop_asked.is_set():
                raise StoppedError from exc
            if isinstance(exc, ray.exceptions.NodeDiedError):
                outlive_node_loss()
            raise UserCodeError(HOLDER, _died(exc), "") from exc
        finally:
            context.emit(SlotsReleased(holder=HOLDER))

    def command(self, command: Command) -> None:
        if isinstance(command, Stop):
            self._context.stop_asked.set()
            if self._task is not None:
                ray.cancel(self._task, force=True)
        elif not isinstance(command, Hurry):  # it has what it needs, or Ray starts it
            raise RunError("A cell has one process: no worker to lose, none to add.", "Drill or resize a training run.")

    def report(self, source: str, events: Sequence[Event], pulse: Pulse | None) -> Sequence[Event]:  # noqa: ARG002
        return events


@ray.remote(max_calls=1)
def _work(host: Any, folder: RunFolder, spec: TaskSpec) -> list[Event]:
    reporter = Reporter(host, HOLDER, folder).start()
    node = ray.get_runtime_context().get_node_id()[:8]
    held = SlotsHeld(holder=HOLDER, num_cpus=spec.num_cpus, num_gpus=spec.num_gpus, node=node)
    reporter.emit(held, RunStarted())
    payload = folder.payload()
    try:
        limit_threads(spec.num_cpus)
        with captured(reporter):
            try:
                namespace = payload.open().run()
            except BaseException as exc:
                raise logged(as_user_error(exc, payload, HOLDER), folder, HOLDER) from None
        return list(save_outputs(namespace, spec.outputs, folder, HOLDER))
    finally:
        reporter.close()


def _died(error: Exception) -> str:
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "The cell's process was ended because the node ran out of memory. Ask for a larger node, or work in parts."
    if isinstance(error, ray.exceptions.NodeDiedError):
        return "The node on which the cell ran was lost. Run the cell again."
    return f"The cell's process died ({type(error).__name__}): a crash in native code, or it was killed."
