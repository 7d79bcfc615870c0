"""A host: the detached, restartable actor that owns one run.

Ray starts it again after a kill -9. It then reads from the log that it is not the first, and the run's kind takes up
what is left: training adopts its workers, a pipeline goes on with what is not written, a cell is lost and says so.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from contextlib import suppress

import ray

from raykit.commands import Command, Drill, Resize, Stop
from raykit.engine.journal import Journal
from raykit.engine.run import RunContext, RunKind, StoppedError, UserCodeError, describe, outlive_node_loss
from raykit.engine.setting import ClusterSetting
from raykit.events import Event, HostStarted, RunAccepted, RunEnded, StopAsked, UserFailed
from raykit.policy.failure import Pulse
from raykit.spec import PipelineSpec, RunSpec, ServiceSpec, TaskSpec
from raykit.store.log import Log


@ray.remote(num_cpus=0, max_restarts=-1, max_concurrency=1000)
class Host:
    """Owns a run from its acceptance to its end, and then ends itself."""

    def __init__(self, cluster: ClusterSetting, run: str, spec: RunSpec) -> None:
        self._journal = Journal(Log(cluster.log_path), run)
        records = list(self._journal.log.read_all(run=run, kinds=(RunAccepted, HostStarted, RunEnded, StopAsked)))
        accepted = max(place for place, record in enumerate(records) if isinstance(record.event, RunAccepted))
        since = [record.event for record in records[accepted:]]
        if any(isinstance(event, RunEnded) for event in since):
            threading.Thread(target=self._leave, daemon=True).start()
            return
        attempt = 1 + sum(isinstance(event, HostStarted) for event in since)
        self._context = RunContext(
            name=run,
            spec=spec,
            cluster=cluster,
            emit=self._journal.emit,
            attempt=attempt,
            resumed=since[0].resumed,  # type: ignore[union-attr]
            host=ray.get_runtime_context().current_actor,
        )
        if any(isinstance(event, StopAsked) for event in since):
            self._context.stop_asked.set()
        self._journal.emit(HostStarted(pid=os.getpid(), attempt=attempt))
        self._kind = _make(self._context)
        threading.Thread(target=self._run, name="raykit-run", daemon=True).start()

    async def report(self, source: str, events: Sequence[Event], pulse: Pulse | None = None) -> None:
        """Take what a worker reports; the beat of a worker is an empty report."""
        self._journal.emit(*self._kind.report(source, events, pulse))

    async def command(self, command: Command) -> None:
        """Take a command; returns before it is carried out. Of a stop and another size a host that comes after this one knows."""
        if isinstance(command, Stop):
            self._context.emit(StopAsked())
            await self._journal.written()  # a worker that is told to stop has ended when the next host looks
        if isinstance(command, Drill) and command.action == "kill-host":
            from raykit.engine.drills import kill_host

            kill_host(self._context, command)
            return
        self._kind.command(command)
        if isinstance(command, Resize):
            await self._journal.written()

    async def stored_dataset(self, number: int, make: bytes) -> str:
        """Store the rows of a Ray Dataset that training wants, once, and give where they lie in the run's folder."""
        return await asyncio.to_thread(self._kind.stored_dataset, number, make)  # type: ignore[attr-defined]

    async def ping(self) -> int:
        return os.getpid()

    def _run(self) -> None:
        try:
            self._kind.execute()
            with suppress(OSError):  # the next run is not to fail for what this one leaves
                self._forget_what_nobody_needs()
            ended = RunEnded(state="done")
        except StoppedError as exc:
            ended = RunEnded(state="stopped", error=str(exc))
        except UserCodeError as exc:
            where, error, traceback_text = exc.args
            self._context.emit(UserFailed(where=where, error=error, traceback_text=traceback_text))
            ended = RunEnded(state="failed", error=error)
        except Exception as exc:  # whatever broke, the run must not stay open
            import traceback

            if isinstance(exc, ray.exceptions.RayError):
                outlive_node_loss()
            self._context.emit(UserFailed(where="raykit", error=describe(exc), traceback_text=traceback.format_exc()))
            ended = RunEnded(state="failed", error=describe(exc))
        self._context.emit(ended)
        self._leave()

    def _forget_what_nobody_needs(self) -> None:
        """Delete the large captured values of a finished run, except those of a pipeline's stages, which quarantined rows need."""
        folder = self._context.run_folder
        folder.forget_buffers(but=self._context.payload().large.get("", ()) if isinstance(self._context.spec, PipelineSpec) else ())

    def _leave(self) -> None:
        self._journal.close()
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)


def _make(context: RunContext) -> RunKind:
    if isinstance(context.spec, TaskSpec):
        from raykit.engine.task import TaskRun

        return TaskRun(context)
    if isinstance(context.spec, PipelineSpec):
        from raykit.engine.pipeline.run import PipelineRun

        return PipelineRun(context)
    if isinstance(context.spec, ServiceSpec):
        from raykit.engine.service.run import ServiceRun

        return ServiceRun(context)
    if context.spec.engine == "ray-train":
        from raykit.engine.training.raytrain.run import RayTrainRun

        return RayTrainRun(context)
    from raykit.engine.training.run import TrainingRun

    return TrainingRun(context)
