"""A loop of Ray Train, run unchanged: ``TorchTrainer.fit()`` in the host's thread, seen through Ray Train's callbacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import ray
from ray.train import ScalingConfig
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from raykit.commands import Command, Hurry, Stop
from raykit.engine.run import RunContext, StoppedError, UserCodeError, describe, outlive_node_loss, save_outputs
from raykit.engine.training.raytrain.given import MAX_FAILURES, Given
from raykit.engine.training.raytrain.loop import FIRST, LoopFailedError, loop_of
from raykit.engine.training.raytrain.reported import Earlier, last_report
from raykit.engine.training.raytrain.trainer import Trainer, clear, controller_name
from raykit.engine.training.raytrain.watch import Quiet, Watch, reason_of
from raykit.errors import RunError
from raykit.events import (
    Event,
    LinesPrinted,
    RunWaited,
    SlotsHeld,
    SlotsReleased,
)
from raykit.policy.failure import Pulse
from raykit.spec import TrainSpec

SLOT_LOOK_S = 0.2
WHERE = "Ray Train"


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
        given = Given(context)
        self._wait_for_slots(given.num_further_cpus)
        try:
            self._fit(earlier, given)
        except StoppedError:
            self._save_outputs(all_of_them=False)
            raise
        finally:
            clear(context.name, _storage(context))
            context.emit(*(SlotsReleased(holder=holder) for holder in sorted(self._held)))
        self._save_outputs(all_of_them=True)

    def command(self, command: Command) -> None:
        if isinstance(command, Hurry):  # Ray Train asks for its slots itself
            return
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
        folded = (_folded(event) if isinstance(event, LinesPrinted) and source != FIRST else event for event in events)
        return [event for event in folded if event is not None]

    def _wait_for_slots(self, num_further_cpus: int) -> None:
        """Wait as other runs wait: Ray Train itself gives up when its slots do not come free within minutes.

        Raises:
            UserCodeError: the cluster has not the further CPUs, and Ray Data would wait for them for ever.
        """
        least_cpus, least_gpus = (sum(amounts) for amounts in zip(*self._spec.demand, strict=True))
        least_cpus += num_further_cpus
        if num_further_cpus and ray.cluster_resources().get("CPU", 0) < least_cpus and not self._context.cluster.further_node:
            raise UserCodeError(
                WHERE,
                f"Ray Data needs a CPU besides those of the {self._spec.min_workers} workers, and the cluster has "
                f"{ray.cluster_resources().get('CPU', 0):g}. Give fewer --workers, or a larger cluster (%ray up NAME --cpus N).",
                "",
            )
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

    def _fit(self, earlier: Earlier, given: Given) -> None:
        context = self._context
        trainer = Trainer(
            loop_of(context.host, context.run_folder),
            scaling_config=_scaling(self._spec),
            run_config=given.run_config(
                name=context.folder.name,
                storage_path=str(_storage(context)),
                callbacks=[Watch(context.host, _storage(context), earlier), Quiet()],
            ),
            datasets=given.datasets(),
        )
        trainer.controlled(controller_name(context.name), _storage(context), context.stop_asked)
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
        self._context.emit(*save_outputs(values, there, self._context.run_folder, WHERE))
        missing = [name for name in self._spec.outputs if name not in values]
        if missing and all_of_them:
            known = ", ".join(sorted(values))
            raise UserCodeError(WHERE, f"-o {missing[0]}: the loop reported no metric of that name; there are: {known}.", "")


def _user_error(error: Exception) -> UserCodeError:
    """Peel off what Ray Train puts around an error."""
    if isinstance(error, WorkerGroupError):
        failures = error.worker_failures
        raised = [failure for failure in failures.values() if isinstance(failure, LoopFailedError)]
        if raised:
            return min(raised, key=lambda each: each.rank_order).as_user_error
        reasons = "; ".join(f"rank {rank}: {reason_of(failure)}" for rank, failure in sorted(failures.items()))
        return UserCodeError(WHERE, f"Given up after {MAX_FAILURES} restarts: {reasons}", "")
    cause = error.controller_failure if isinstance(error, ControllerError) else error
    if isinstance(cause, ray.exceptions.RayTaskError):
        cause = cause.cause
    return cause.as_user_error if isinstance(cause, LoopFailedError) else UserCodeError(WHERE, describe(cause), "")


def _scaling(spec: TrainSpec) -> ScalingConfig:
    resources = {"CPU": spec.cpus_per_worker} | ({"GPU": spec.gpus_per_worker} if spec.gpus_per_worker else {})
    return ScalingConfig(
        num_workers=spec.min_workers if spec.min_workers == spec.max_workers else spec.workers,
        use_gpu=spec.gpus_per_worker > 0,
        resources_per_worker=resources,
    )


def _storage(context: RunContext) -> Path:
    return context.folder / "ray-train"


def _folded(event: LinesPrinted) -> LinesPrinted | None:
    num_dropped = event.num_dropped + len(event.lines)
    return replace(event, lines=(), open_lines=(), num_dropped=num_dropped) if num_dropped else None
