"""A loop of Ray Train, run unchanged: ``TorchTrainer.fit()`` in the host's thread, seen through Ray Train's callbacks.

Every touch of Ray Train, its private parts among them; tests/ray/test_raytrain_contract.py pins those on Ray 2.60.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import ray
from ray.core.generated import gcs_pb2
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import (
    ENABLE_PRINT_PATCH_ENV_VAR,
    HEALTH_CHECK_INTERVAL_S_ENV_VAR,
    WORKER_GROUP_START_TIMEOUT_S_ENV_VAR,
    get_env_vars_to_propagate,
)
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution import context as train_context
from ray.train.v2._internal.execution.callback import ControllerCallback, ReportCallback, WorkerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.controller.state import ErroredState, RestartingState, ShuttingDownState
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, TrainingFailedError, WorkerGroupError
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raykit.commands import Command, Stop
from raykit.engine.run import RunContext, StoppedError, UserCodeError, describe, outlive_node_loss, save_outputs
from raykit.engine.setting import NAMESPACE
from raykit.engine.training.loop import FIRST, LoopFailedError, loop_of
from raykit.engine.training.reported import Earlier, Report, keep_report, last_report
from raykit.errors import RunError
from raykit.events import (
    CheckpointSaved,
    Event,
    LinesPrinted,
    Recovered,
    RunStarted,
    RunWaited,
    SlotsHeld,
    SlotsReleased,
    StepCommitted,
    WorkerEnded,
    WorkerLost,
    WorkerReady,
    WorkerStarted,
    WorldFormed,
)
from raykit.policy.failure import Pulse
from raykit.spec import TrainSpec

TICK_S = 0.1
SLOT_LOOK_S = 0.2
SEND_TIMEOUT_S = 5.0
ABORT_TIMEOUT_S = 5.0
CLEAR_TIMEOUT_S = 10.0
POLL_S = 0.25  # Ray Train takes one report of each rank a poll; its own 2 s would make a step of 0.2 s one of 2 s
PLACING_TIMEOUT_S = 10.0  # free slots are placed in no time, unless their node is dead and Ray does not know yet; its own: 60
MAX_FAILURES = 3  # restarts after the loss of ranks, over the whole run; Ray Train's own default is none
MAX_FAILED_STARTS = 3  # Ray Train's own default is no limit: a run whose ranks cannot start would never end
WHERE = "Ray Train"
COORDINATOR = "AutoscalingCoordinator"  # its name and its namespace
CLAIM = "claim"  # the file with the name under which the run claims slots there
REASON_LENGTH = 300


class RayTrainRun:
    """Drives one ``fit()``, and the next after a host's death or a stop, from the newest checkpoint that it kept."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._spec: TrainSpec = context.spec
        self._held: set[str] = set()

    def execute(self) -> None:
        context = self._context
        if self._spec.gpus_per_worker and context.cluster.simulated_gpus:
            raise UserCodeError(
                WHERE, "The GPUs of this cluster are simulated; Ray Train would look for real ones. Leave --gpus out.", ""
            )
        clear(context.name, _storage(context))
        earlier = Earlier.of(context)
        context.emit(*earlier.farewell)
        if context.stop_asked.is_set():
            raise StoppedError
        self._wait_for_slots()
        try:
            self._fit(earlier)
        except StoppedError:
            self._save_outputs(all_of_them=False)
            raise
        finally:
            clear(context.name, _storage(context))
            context.emit(*(SlotsReleased(holder=holder) for holder in sorted(self._held)))
        self._save_outputs(all_of_them=True)

    def command(self, command: Command) -> None:
        if not isinstance(command, Stop):
            raise RunError(
                "A run of --engine ray-train takes neither drills nor another size: Ray Train keeps its ranks itself.",
                "Give a range to begin with (--workers 1:4), or kill the process of a rank; its number is in the view.",
            )
        self._context.stop_asked.set()

    def report(self, source: str, events: Sequence[Event], pulse: Pulse | None) -> Sequence[Event]:  # noqa: ARG002
        """Keep account of slots; of what is printed only rank 0's lines are shown, the files have all."""
        for event in events:
            if isinstance(event, SlotsHeld):
                self._held.add(event.holder)
            if isinstance(event, SlotsReleased):
                self._held.discard(event.holder)
        return [_folded(event) if isinstance(event, LinesPrinted) and source != FIRST else event for event in events]

    def _wait_for_slots(self) -> None:
        """Wait as other runs wait: Ray Train itself gives up when its slots do not come free within minutes."""
        least_cpus, least_gpus = (sum(amounts) for amounts in zip(*self._spec.demand, strict=True))
        told = False
        while True:
            free = ray.available_resources()
            if free.get("CPU", 0) >= least_cpus and free.get("GPU", 0) >= least_gpus:
                return
            if not told:
                told = True
                asked = f"{self._spec.min_workers} slots are asked"
                self._context.emit(
                    RunWaited(reason=f"{asked}, {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs are free")
                )
            if self._context.stop_asked.wait(SLOT_LOOK_S):
                raise StoppedError

    def _fit(self, earlier: Earlier) -> None:
        context = self._context
        trainer = _Trainer(
            loop_of(context.host, context.folder),
            scaling_config=_scaling(self._spec),
            run_config=RunConfig(
                # The same name and path each time: there Ray Train finds the checkpoints that it kept.
                name=context.folder.name,
                storage_path=str(_storage(context)),
                failure_config=FailureConfig(max_failures=MAX_FAILURES, controller_failure_limit=MAX_FAILED_STARTS),
                logging_config=LoggingConfig(log_level="WARNING"),  # of what Ray Train says itself; the view says it too
                callbacks=[_Watch(context.host, _storage(context), earlier), _Quiet()],
            ),
        )
        trainer.controlled(_controller_name(context.name), _storage(context), context.stop_asked)
        try:
            trainer.fit()
        except TrainingFailedError as exc:
            raise _user_error(exc) from exc
        except ray.exceptions.RayActorError as exc:
            if context.stop_asked.is_set():
                raise StoppedError from exc
            outlive_node_loss()
            problem = f"Ray Train's controller died ({type(exc).__name__})."
            raise UserCodeError(WHERE, f"{problem} Go on from the newest checkpoint: %ray resume {context.name}", "") from exc

    def _save_outputs(self, *, all_of_them: bool) -> None:
        """Save what -o names: ``result``, all that was reported last, ``checkpoint``, or one of the metrics."""
        reported = last_report(_storage(self._context))
        if not (reported.metrics or all_of_them):
            return
        values = {"checkpoint": reported.checkpoint, **reported.metrics, "result": reported.metrics}
        there = [name for name in self._spec.outputs if name in values]
        self._context.emit(*save_outputs(values, there, self._context.folder, WHERE))
        missing = [name for name in self._spec.outputs if name not in values]
        if missing and all_of_them:
            known = ", ".join(sorted(values))
            raise UserCodeError(WHERE, f"-o {missing[0]}: the loop reported no metric of that name; there are: {known}.", "")


def clear(run: str, storage: Path) -> None:
    """End the controller that a run has, or had, and remove what it held; blocking until its slots are on their way back.

    What Ray Train starts for a run belongs to its controller's process and ends with it, except for placement groups,
    which stay when a start fails or the controller is killed, and for its claim with Ray's coordinator, by which others
    (Ray Data among them) would count its slots as taken for three minutes more.
    """
    name = _controller_name(run)
    with suppress(ValueError):
        ray.kill(ray.get_actor(name, namespace=NAMESPACE))
    deadline = time.monotonic() + CLEAR_TIMEOUT_S
    while time.monotonic() < deadline and any(row["State"] != "DEAD" for row in _actors_called(name)):
        time.sleep(TICK_S)
    creators = {row["ActorID"] for row in _actors_called(name)}
    for group in _groups_made_by(creators):
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
    claim = storage / CLAIM
    if claim.exists():
        with suppress(ValueError, ray.exceptions.RayError):  # no coordinator, no claim
            coordinator = ray.get_actor(COORDINATOR, namespace=COORDINATOR)
            ray.get(coordinator.cancel_request.remote(claim.read_text()), timeout=SEND_TIMEOUT_S)
        claim.unlink()


def _actors_called(name: str) -> list[dict[str, Any]]:
    return [row for row in ray._private.state.state.actor_table(None).values() if row["Name"] == name]  # noqa: SLF001


def _groups_made_by(creators: set[str]) -> Iterator[Any]:
    """Give the records of placement groups that are there; Ray's public table leaves out who made them."""
    accessor = ray._private.state.state._connect_and_get_accessor()  # noqa: SLF001
    for row in accessor.get_placement_group_table():
        group = gcs_pb2.PlacementGroupTableData.FromString(row)
        if group.creator_actor_id.hex() in creators and group.state != gcs_pb2.PlacementGroupTableData.REMOVED:
            yield group


class _Trainer(TorchTrainer):
    """Ray Train's own trainer, whose controller can be found by its name and be stopped."""

    def controlled(self, name: str, storage: Path, stop_asked: threading.Event) -> None:
        self._name, self._storage, self._stop_asked = name, storage, stop_asked

    def _create_default_callbacks(self) -> list[Any]:
        """Leave out the cleaner, a detached actor that looks for the dashboard each second; :func:`clear` does its work.

        The watch comes first, so that it knows the workers of a start that fails.
        """
        all_of_them = super()._create_default_callbacks()
        kept = [each for each in all_of_them if not isinstance(each, PlacementGroupCleanerCallback)]
        return sorted(kept, key=lambda each: not isinstance(each, _Watch))

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        if self._stop_asked.is_set():
            raise StoppedError
        environment = {
            HEALTH_CHECK_INTERVAL_S_ENV_VAR: str(POLL_S),
            ENABLE_PRINT_PATCH_ENV_VAR: "0",  # with it each printed line comes twice: by its stream and by a logger
            "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",  # Ray Train's own setting
        }
        self._storage.mkdir(mode=0o700, exist_ok=True)
        (self._storage / CLAIM).write_text(f"train-{self.train_run_context.run_id}")
        if self.scaling_config.elasticity_enabled:
            arguments["scaling_policy"] = _AsSlotsAllow(self.scaling_config)
            environment[WORKER_GROUP_START_TIMEOUT_S_ENV_VAR] = str(PLACING_TIMEOUT_S)
        controller = (
            ray.remote(TrainController)
            .options(
                name=self._name,
                namespace=NAMESPACE,
                num_cpus=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False),
                runtime_env={"env_vars": environment | get_env_vars_to_propagate()},
            )
            .remote(**arguments)
        )
        running = controller.run.remote()
        while not ray.wait([running], timeout=TICK_S)[0]:
            if self._stop_asked.is_set():
                # Asked first: a kill might meet it while it writes which checkpoints there are.
                with suppress(ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
                    ray.get(controller.abort.remote(), timeout=ABORT_TIMEOUT_S)
                raise StoppedError
        ray.get(running)
        return ray.get(controller.get_result.remote())


class _AsSlotsAllow(ElasticScalingPolicy):
    """Decides on as many workers as there are slots that are free or the run's own.

    Ray Train's own policy goes by claims alone. Where a cell holds a slot, it decides on a group that cannot be placed,
    waits a minute, and decides the same again; after the loss of a node it does so until the coordinator hears of it.
    """

    def _count_possible_workers(self, reserved_resources: dict[str, dict[str, float]]) -> int:  # noqa: ARG002
        slots: dict[str, dict[str, float]] = ray._private.state.available_resources_per_node()  # noqa: SLF001
        for group in _groups_made_by({ray.get_runtime_context().get_actor_id()}):
            for bundle in group.bundles:
                node = slots.get(bundle.node_id.hex(), {})
                for resource, amount in bundle.unit_resources.items():
                    node[resource] = node.get(resource, 0.0) + amount
        return super()._count_possible_workers(slots)


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


class _Quiet(WorkerCallback):
    """Keeps out of what the loop prints what Ray Train says of each report. It runs in the workers."""

    def after_init_train_context(self) -> None:
        train_context.logger.setLevel(logging.WARNING)  # its name is a path, so that the level of the run's logging misses it


class _Watch(ControllerCallback, WorkerGroupCallback, ReportCallback):
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
            events.append(WorkerStarted(worker=name, pid=about.pid, node=about.node_id[:8], device=device))
            cpus, gpus = worker.resources.get("CPU", 0), worker.resources.get("GPU", 0)
            events.append(SlotsHeld(holder=name, num_cpus=cpus, num_gpus=gpus, node=about.node_id[:8]))
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
            failures = _failures_in(current_state.next_state.training_failed_error)
            self._lose({rank: failure for rank, failure in failures.items() if not isinstance(failure, LoopFailedError)})

    def _restarts(self, error: Exception) -> None:
        failures = _failures_in(error)
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
                cause="; ".join(dict.fromkeys(_reason(failure) for failure in lost.values())) or describe(error),
                world_size=len(self._members),
                step=self._step,
            )

    def _lose(self, failures: dict[int, Exception]) -> None:
        """Say who is gone; the others of the group end with the next start."""
        living = [(rank, failure) for rank, failure in sorted(failures.items()) if not self._members[rank].lost]
        for rank, _ in living:
            self._members[rank].lost = True
        self._send(*(WorkerLost(worker=self._members[rank].name, rank=rank, cause=_reason(failure)) for rank, failure in living))

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


def _failures_in(error: Exception) -> dict[int, Exception]:
    """Give what failed, by rank; empty where Ray Train does not say."""
    if isinstance(error, WorkerGroupError):
        return dict(error.worker_failures)
    if isinstance(error, PreemptionError):
        return dict.fromkeys(error.preemption_info.preempted_ranks, error)
    return {}


def _user_error(error: Exception) -> UserCodeError:
    """Peel off what Ray Train puts around an error."""
    if isinstance(error, WorkerGroupError):
        failures = error.worker_failures
        raised = [failure for failure in failures.values() if isinstance(failure, LoopFailedError)]
        if raised:
            return min(raised, key=lambda each: each.rank_order).as_user_error
        reasons = "; ".join(f"rank {rank}: {_reason(failure)}" for rank, failure in sorted(failures.items()))
        return UserCodeError(WHERE, f"Given up after {MAX_FAILURES} restarts: {reasons}", "")
    cause = error.controller_failure if isinstance(error, ControllerError) else error
    if isinstance(cause, ray.exceptions.RayTaskError):
        cause = cause.cause
    return cause.as_user_error if isinstance(cause, LoopFailedError) else UserCodeError(WHERE, describe(cause), "")


def _reason(error: Exception) -> str:
    """Say in Ray's words, on one line, why a rank is gone."""
    if isinstance(error, LoopFailedError):
        return str(error)
    cause = error.health_check_failure if isinstance(error, WorkerHealthCheckFailedError) else error
    said = [line for line in str(cause).splitlines() if line and not line.startswith("\t")]
    # Ray's errors about actors begin with a line that every one of them has.
    text = " ".join(said[1:] or said) if isinstance(cause, ray.exceptions.RayActorError) else describe(cause)
    text = text.partition(" Some common causes include")[0]
    return text if len(text) <= REASON_LENGTH else text[:REASON_LENGTH] + "..."


def _scaling(spec: TrainSpec) -> ScalingConfig:
    resources = {"CPU": spec.cpus_per_worker} | ({"GPU": spec.gpus_per_worker} if spec.gpus_per_worker else {})
    return ScalingConfig(
        num_workers=spec.min_workers if spec.min_workers == spec.max_workers else spec.workers,
        use_gpu=spec.gpus_per_worker > 0,
        resources_per_worker=resources,
    )


def _storage(context: RunContext) -> Path:
    return context.folder / "ray-train"


def _controller_name(run: str) -> str:
    return f"ray-train:{run}"


def _folded(event: LinesPrinted) -> LinesPrinted:
    return replace(event, lines=(), num_dropped=event.num_dropped + len(event.lines))
