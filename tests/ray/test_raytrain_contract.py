"""What raykit needs of Ray Train's inner parts, held on the version that is pinned."""

from __future__ import annotations

import subprocess
import sys


def test_the_parts_of_ray_train_that_raykit_touches_are_there():
    # In a process of its own: this one stays without ray.
    code = """
from dataclasses import fields
from inspect import getsource, iscoroutinefunction, signature
import ray
from ray.core.generated import gcs_pb2
from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator
from ray.train import FailureConfig, LoggingConfig, ScalingConfig
from ray.train._internal.utils import count_required_parameters
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal import constants
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution import context
from ray.train.v2._internal.execution.callback import ControllerCallback, ReportCallback, WorkerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.controller.state import ErroredState, RestartingState, ShuttingDownState
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, ScalingPolicy
from ray.train.v2._internal.execution.worker_group.worker import ActorMetadata, Worker
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, WorkerGroupError
from raykit.engine.claims import First

def parameters(function):
    return list(signature(function).parameters)

for name, wanted in (
    ("before_worker_group_start", ["self", "worker_group_context"]),
    ("after_worker_group_start", ["self", "worker_group"]),
    ("after_worker_group_training_start", ["self", "worker_group"]),
    ("after_worker_group_shutdown", ["self", "worker_group_context"]),
    ("after_worker_group_abort", ["self", "worker_group_context"]),
):
    assert parameters(getattr(WorkerGroupCallback, name)) == wanted, name
assert parameters(ReportCallback.after_report) == ["self", "training_report", "metrics"]
assert parameters(ControllerCallback.after_controller_state_update) == ["self", "previous_state", "current_state"]

assert {"CPU", "GPU"} <= set(ScalingConfig(num_workers=(1, 2), use_gpu=True, resources_per_worker={"CPU": 1, "GPU": 1}).total_resources)
assert 'f"train-{train_run_context.run_id}"' in getsource(ScalingPolicy.after_controller_start)
for part in ('name="AutoscalingCoordinator"', 'namespace="AutoscalingCoordinator"'):
    assert part in getsource(default_autoscaling_coordinator.get_or_create_autoscaling_coordinator), part
coordinator = default_autoscaling_coordinator._AutoscalingCoordinatorActor
assert parameters(coordinator.cancel_request) == ["self", "requester_id"]
wanted = ["self", "requester_id", "resources", "expire_after_s", "request_remaining", "priority"]
assert parameters(coordinator.request_resources)[:6] == wanted
highest = max(each.value for each in default_autoscaling_coordinator.ResourceRequestPriority)
assert highest < First().value and getsource(coordinator.request_resources).count("priority.") == 2, "only its value is read"
policy = ElasticScalingPolicy(ScalingConfig(num_workers=(1, 3)))
assert policy._count_possible_workers({"a": {"CPU": 1.5}, "b": {"CPU": 1.0, "memory": 5.0}, "c": {}}) == 2
assert "scaling_policy=create_scaling_policy(self.scaling_config)" in getsource(TorchTrainer.fit)
assert {"max_failures", "controller_failure_limit"} <= {each.name for each in fields(FailureConfig)}
assert parameters(TorchTrainer._create_default_callbacks) == ["self"]
assert parameters(TorchTrainer._initialize_and_run_controller) == ["self", "controller_init_kwargs"]
# What raykit's own way of starting the controller leaves out or does in its stead.
source = getsource(TorchTrainer._initialize_and_run_controller)
for part in ("num_cpus=0", "RAY_NODE_ID_KEY", "env_vars", "controller.run.remote()", "controller.get_result.remote()"):
    assert part in source, part
assert iscoroutinefunction(TrainController.run) and iscoroutinefunction(TrainController.abort)
told = {
    constants.HEALTH_CHECK_INTERVAL_S_ENV_VAR,
    constants.ENABLE_PRINT_PATCH_ENV_VAR,
    constants.WORKER_GROUP_START_TIMEOUT_S_ENV_VAR,
}
assert told <= constants.ENV_VARS_TO_PROPAGATE and constants.get_env_vars_to_propagate() == {}
assert parameters(WorkerCallback.after_init_train_context) == ["self"] and context.logger.name == context.__file__
assert LoggingConfig(log_level="WARNING").log_level == "WARNING"

error = WorkerGroupError("no", {1: KeyError("k")})
assert RestartingState(error).training_failed_error is error
assert ShuttingDownState(ErroredState(error)).next_state.training_failed_error.worker_failures.keys() == {1}
assert isinstance(ControllerError(KeyError("k")).controller_failure, KeyError)
assert isinstance(WorkerHealthCheckFailedError("no", KeyError("k")).health_check_failure, KeyError)
assert parameters(PreemptionError)[0] == "preemption_info"
assert {"actor", "metadata", "resources", "distributed_context"} <= {each.name for each in fields(Worker)}
assert {"pid", "node_id"} <= {each.name for each in fields(ActorMetadata)} and isinstance(ActorMetadata.gpu_ids, property)
assert count_required_parameters(lambda config=None, *args: 0) == 1 and count_required_parameters(lambda config=None: 0) == 0

assert {"creator_actor_id", "placement_group_id", "state"} <= set(gcs_pb2.PlacementGroupTableData.DESCRIPTOR.fields_by_name)
assert {"node_id", "unit_resources"} <= set(gcs_pb2.PlacementGroupTableData.DESCRIPTOR.fields_by_name["bundles"].message_type.fields_by_name)
assert callable(ray._private.state.available_resources_per_node) and callable(ray._private.state.state.actor_table)
assert callable(ray._private.state.state._connect_and_get_accessor)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
