"""Ray Train's trainer with a controller that can be found, stopped, and cleared away after; its size follows the free slots."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.core.generated import gcs_pb2
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import (
    ENABLE_PRINT_PATCH_ENV_VAR,
    HEALTH_CHECK_INTERVAL_S_ENV_VAR,
    WORKER_GROUP_START_TIMEOUT_S_ENV_VAR,
    get_env_vars_to_propagate,
)
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raykit.engine.claims import COORDINATOR
from raykit.engine.run import StoppedError
from raykit.engine.setting import NAMESPACE
from raykit.engine.training.raytrain.watch import Watch

TICK_S = 0.1
SEND_TIMEOUT_S = 5.0
ABORT_TIMEOUT_S = 5.0
CLEAR_TIMEOUT_S = 10.0
POLL_S = 0.25  # Ray Train takes one report of each rank a poll; its own 2 s would make a step of 0.2 s one of 2 s
PLACING_TIMEOUT_S = 10.0  # free slots are placed in no time, unless their node is dead and Ray does not know yet; its own: 60
CLAIM = "claim"  # the file with the name under which the run claims slots there


class Trainer(TorchTrainer):
    """Ray Train's own trainer, whose controller can be found by its name and be stopped."""

    def controlled(self, name: str, storage: Path, stop_asked: threading.Event) -> None:
        self._name, self._storage, self._stop_asked = name, storage, stop_asked

    def _create_default_callbacks(self) -> list[Any]:
        """Leave out the cleaner, a detached actor that looks for the dashboard each second; :func:`clear` does its work.

        The watch comes first, so that it knows the workers of a start that fails.
        """
        all_of_them = super()._create_default_callbacks()
        kept = [each for each in all_of_them if not isinstance(each, PlacementGroupCleanerCallback)]
        return sorted(kept, key=lambda each: not isinstance(each, Watch))

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
            arguments["scaling_policy"] = AsSlotsAllow(self.scaling_config)
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


class AsSlotsAllow(ElasticScalingPolicy):
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


def clear(run: str, storage: Path) -> None:
    """End the controller that a run has, or had, and remove what it held; blocking until its slots are on their way back.

    What Ray Train starts for a run belongs to its controller's process and ends with it, except for placement groups,
    which stay when a start fails or the controller is killed, and for its claim with Ray's coordinator, by which others
    (Ray Data among them) would count its slots as taken for three minutes more.
    """
    name = controller_name(run)
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


def controller_name(run: str) -> str:
    return f"ray-train:{run}"
