"""A pipeline's run: Ray Data executes in this host, every stage an actor pool of its own."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raykit.commands import Command, Stop
from raykit.engine.pipeline import raydata
from raykit.engine.pipeline.sink import PartWriter, publish
from raykit.engine.pipeline.stages import StageFailedError
from raykit.engine.run import RunContext, StoppedError, UserCodeError, as_user_error
from raykit.errors import RunError
from raykit.events import (
    Event,
    OutputReady,
    ReplicaStarted,
    RunStarted,
    SlotsHeld,
    SlotsReleased,
    SourceCounted,
    UserFailed,
)
from raykit.policy.failure import Pulse
from raykit.spec import PipelineSpec, SourceSpec, StageSpec
from raykit.wire.payload import PipelineWork


class PipelineRun:
    """Builds the dataset, consumes it into Parquet parts, and keeps account of replicas and slots."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._spec: PipelineSpec = context.spec
        self._failure: UserFailed | None = None
        self._held: set[str] = set()
        self._execution = raydata.Execution(context.name, self._spec.stages, self._sampled)

    def execute(self) -> None:
        context = self._context
        if context.stop_asked.is_set():
            raise StoppedError
        payload = context.payload()
        try:
            work: PipelineWork = payload.open()
            dataset = _source(self._spec.source, work.source)
        except Exception as exc:
            raise as_user_error(exc, payload, "the source") from exc
        if self._spec.limit is not None:
            dataset = dataset.limit(self._spec.limit)
        if self._spec.source.form == "items":
            rows = len(work.source)
            context.emit(SourceCounted(num_rows=min(rows, self._spec.limit or rows)))
        for spec in self._spec.stages:
            dataset = self._with_stage(dataset, spec)
        # A host that came back begins again: a draft of an earlier attempt holds rows that will come again.
        draft = context.folder / "parts.new"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        context.emit(RunStarted())
        self._consume(dataset, draft)
        self._publish(draft)

    def command(self, command: Command) -> None:
        if isinstance(command, Stop):
            self._context.stop_asked.set()
            threading.Thread(target=self._execution.cancel, daemon=True).start()
        else:
            raise RunError("A pipeline has no ranks.", "Drill or resize a training run.")

    def report(self, source: str, events: Sequence[Event], pulse: Pulse | None) -> Sequence[Event]:  # noqa: ARG002
        """Keep account of slots as replicas come, and end the run at the first failure of the user's code."""
        for event in events:
            if isinstance(event, ReplicaStarted):
                spec = next(stage for stage in self._spec.stages if stage.name == event.stage)
                self._held.add(event.replica)
                self._context.emit(SlotsHeld(holder=event.replica, num_cpus=spec.num_cpus, num_gpus=spec.num_gpus, node=event.node))
            if isinstance(event, UserFailed) and self._failure is None:
                self._failure = event
                threading.Thread(target=self._execution.cancel, daemon=True).start()
        return events

    def _with_stage(self, dataset: Any, spec: StageSpec) -> Any:
        context = self._context
        arguments = {"host": context.host, "folder": context.folder, "spec": spec}
        return raydata.add_stage(dataset, spec, arguments)

    def _consume(self, dataset: Any, draft: Path) -> None:
        try:
            with PartWriter(draft) as sink:
                for table in self._execution.tables(dataset):
                    sink.write(table)
        except Exception as exc:
            if self._failure is None and not self._context.stop_asked.is_set():
                failed = _failure_in(exc)
                if failed is None:
                    raise
                raise UserCodeError(*failed.args) from exc
        finally:
            for holder in sorted(self._held):
                self._context.emit(SlotsReleased(holder=holder))
        if self._failure is not None:
            raise UserCodeError(self._failure.where, self._failure.error, self._failure.traceback_text)
        if self._context.stop_asked.is_set():
            raise StoppedError

    def _publish(self, draft: Path) -> None:
        """Let the parts appear when all rows are written."""
        target = self._spec.output_path or str(self._context.folder / "parts")
        size = sum(part.stat().st_size for part in draft.iterdir())
        publish(draft, target, prefix=f"{self._context.name.replace('#', '-')}-" if self._spec.output_path else "")
        self._context.emit(OutputReady(name=next(iter(self._spec.outputs), "rows"), file=target, num_bytes=size))

    def _sampled(self, events: Sequence[Event]) -> None:
        self._context.emit(*events)


def _source(spec: SourceSpec, value: Any) -> Any:
    if spec.form == "items":
        return raydata.from_items(value)
    if spec.form == "dataset":
        return value()
    return raydata.read(spec.format, list(spec.paths))


def _failure_in(error: BaseException) -> StageFailedError | None:
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        if isinstance(each, StageFailedError):
            return each
        each = getattr(each, "cause", None) or each.__cause__ or each.__context__
    return None
