"""Ray Train's callbacks: what happens in its controller becomes events of the host."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import ray
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution import context as train_context
from ray.train.v2._internal.execution.callback import ControllerCallback, ReportCallback, WorkerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.state import ErroredState, RestartingState, ShuttingDownState
from ray.train.v2.api.exceptions import PreemptionError, WorkerGroupError

from raykit.engine.run import describe
from raykit.engine.training.raytrain.loop import LoopFailedError
from raykit.engine.training.raytrain.reported import Earlier, Report, keep_report, last_report
from raykit.events import (
    CheckpointSaved,
    Event,
    Recovered,
    RunStarted,
    SlotsHeld,
    SlotsReleased,
    StepCommitted,
    WorkerEnded,
    WorkerLost,
    WorkerReady,
    WorkerStarted,
    WorldFormed,
)

SEND_TIMEOUT_S = 5.0
REASON_LENGTH = 300


@dataclass(slots=True, kw_only=True)
class _Member:
    """A worker of the group that Ray Train has now."""

    name: str
    lost: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loss:
    """A failure that Ray Train mends by starting all ranks anew."""

    known_at_s: float
    what: str
    cause: str
    world_size: int
    step: int


class Quiet(WorkerCallback):
    """Keeps out of what the loop prints what Ray Train says of each report. It runs in the workers."""

    def after_init_train_context(self) -> None:
        train_context.logger.setLevel(logging.WARNING)  # its name is a path, so that the level of the run's logging misses it


class Watch(ControllerCallback, WorkerGroupCallback, ReportCallback):
    """Tells the host what Ray Train does. It is pickled once, and then lives in the controller's process."""

    def __init__(self, host: Any, storage: Path, earlier: Earlier) -> None:
        self._host, self._storage = host, storage
        self._num_named, self._generation = earlier.num_workers, earlier.generation
        self._step = self._checkpoint_step = self._world_step = earlier.checkpoint_step
        self._checkpoint = self._world_checkpoint = last_report(storage).checkpoint
        self._members: list[_Member] = []
        self._held: list[str] = []
        self._has_begun = self._has_reported = False
        self._loss: _Loss | None = None

    def before_worker_group_start(self, worker_group_context: Any) -> None:  # noqa: ARG002
        self._release()

    def after_worker_group_start(self, worker_group: Any) -> None:
        events: list[Event] = [WorkerEnded(worker=member.name) for member in self._members if not member.lost]
        self._members = []
        for worker in worker_group.get_workers():
            self._num_named += 1
            name, about = f"w{self._num_named}", worker.metadata
            device = f"GPU {', '.join(map(str, about.gpu_ids))}" if about.gpu_ids else "cpu"
            node, cpus, gpus = about.node_id[:8], worker.resources.get("CPU", 0), worker.resources.get("GPU", 0)
            started = WorkerStarted(worker=name, pid=about.pid, node=node, device=device, num_cpus=cpus, num_gpus=gpus)
            events += started, SlotsHeld(holder=name, num_cpus=cpus, num_gpus=gpus, node=node)
            self._members.append(_Member(name=name))
        self._held = [member.name for member in self._members]
        self._send(*events)

    def after_worker_group_training_start(self, worker_group: Any) -> None:  # noqa: ARG002
        self._generation += 1
        self._has_reported = False
        self._step = self._world_step = self._checkpoint_step
        self._world_checkpoint = self._checkpoint
        workers = tuple(member.name for member in self._members)
        begun = [] if self._has_begun else [RunStarted()]
        self._has_begun = True
        self._send(*begun, WorldFormed(generation=self._generation, workers=workers, step=self._world_step))

    def after_worker_group_shutdown(self, worker_group_context: Any) -> None:  # noqa: ARG002
        self._release()

    def after_worker_group_abort(self, worker_group_context: Any) -> None:  # noqa: ARG002
        self._release()

    def after_report(self, training_report: Any, metrics: list[dict[str, Any]]) -> None:
        """Take a report that all ranks made; its metrics are rank 0's, as in Ray Train's own result."""
        reported = metrics[0]
        named = reported.get("step")
        self._step = int(named) if isinstance(named, Integral) and not isinstance(named, bool) else self._step + 1
        events: list[Event] = []
        if not self._has_reported:
            events += [WorkerReady(worker=member.name) for member in self._members]
        self._has_reported = True
        numbers = {name: float(value) for name, value in reported.items() if isinstance(value, Real)}
        events.append(StepCommitted(step=self._step, epoch=None, num_rows=None, total_steps=None, metrics=numbers))
        if training_report.checkpoint is not None:
            self._checkpoint, self._checkpoint_step = training_report.checkpoint.path, self._step
            events.append(CheckpointSaved(step=self._step, path=self._checkpoint, save_s=None))
        if self._loss is not None:
            events.append(self._recovered(self._loss))
            self._loss = None
        keep_report(self._storage, Report(metrics=reported, checkpoint=self._checkpoint))
        self._send(*events)

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:  # noqa: ARG002
        """Take a failure in.

        Raises:
            LoopFailedError: a new start would meet the same error again, so that Ray Train must not try.
        """
        if isinstance(current_state, RestartingState):
            self._restarts(current_state.training_failed_error)
        elif isinstance(current_state, ShuttingDownState) and isinstance(current_state.next_state, ErroredState):
            failures = failures_in(current_state.next_state.training_failed_error)
            self._lose({rank: failure for rank, failure in failures.items() if not isinstance(failure, LoopFailedError)})

    def _restarts(self, error: Exception) -> None:
        failures = failures_in(error)
        raised = [failure for failure in failures.values() if isinstance(failure, LoopFailedError)]
        if raised and len(raised) == len(failures):
            first = min(raised, key=lambda each: each.rank_order)
            if not first.may_be_loss or not self._has_reported:
                raise first
        lost = {rank: failure for rank, failure in failures.items() if failure not in raised} or failures
        self._lose(lost)
        if self._loss is None:
            ranks = [f"rank {rank} ({self._members[rank].name})" for rank in sorted(lost)]
            self._loss = _Loss(
                known_at_s=time.monotonic(),
                what=f"{', '.join(ranks) or 'The world'} {'were' if len(ranks) > 1 else 'was'} lost",
                cause="; ".join(dict.fromkeys(reason_of(failure) for failure in lost.values())) or describe(error),
                world_size=len(self._members),
                step=self._step,
            )

    def _lose(self, failures: dict[int, Exception]) -> None:
        """Say who is gone; the others of the group end with the next start."""
        living = [(rank, failure) for rank, failure in sorted(failures.items()) if not self._members[rank].lost]
        for rank, _ in living:
            self._members[rank].lost = True
        self._send(*(WorkerLost(worker=self._members[rank].name, rank=rank, cause=reason_of(failure)) for rank, failure in living))

    def _recovered(self, loss: _Loss) -> Recovered:
        names = ", ".join(member.name for member in self._members)
        whence = (
            f"from the checkpoint of step {self._world_step}"
            if self._world_checkpoint
            else "from the start: there was no checkpoint yet"
        )
        return Recovered(
            what=loss.what,
            cause=loss.cause,
            detected_after_s=None,
            recovered_after_s=time.monotonic() - loss.known_at_s,
            world_before=loss.world_size,
            world_after=len(self._members),
            step_before=self._step - 1,
            steps_lost=max(0, loss.step - self._world_step),
            steps_redone=None,
            remedy=f"Ray Train started new workers ({names}) {whence}",
        )

    def _release(self) -> None:
        self._send(*(SlotsReleased(holder=name) for name in self._held))
        self._held = []

    def _send(self, *events: Event) -> None:
        """Give events to the host, in their order and before Ray Train goes on: the host may leave after its ``fit()``."""
        if not events:
            return
        try:
            self._host.report.remote("controller", events).future().result(SEND_TIMEOUT_S)
        except (ray.exceptions.RayError, TimeoutError):  # it died, and this process ends with it
            logging.getLogger(__name__).warning("the host did not take %s", events)


def failures_in(error: Exception) -> dict[int, Exception]:
    """Give what failed, by rank; empty where Ray Train does not say."""
    if isinstance(error, WorkerGroupError):
        return dict(error.worker_failures)
    if isinstance(error, PreemptionError):
        return dict.fromkeys(error.preemption_info.preempted_ranks, error)
    return {}


def reason_of(error: Exception) -> str:
    """Say in Ray's words, on one line, why a rank is gone."""
    if isinstance(error, LoopFailedError):
        return str(error)
    cause = error.health_check_failure if isinstance(error, WorkerHealthCheckFailedError) else error
    said = [line for line in str(cause).splitlines() if line and not line.startswith("\t")]
    # Ray's errors about actors begin with a line that every one of them has.
    text = " ".join(said[1:] or said) if isinstance(cause, ray.exceptions.RayActorError) else describe(cause)
    text = text.partition(" Some common causes include")[0]
    return text if len(text) <= REASON_LENGTH else text[:REASON_LENGTH] + "..."
