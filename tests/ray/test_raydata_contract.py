"""What raykit needs of Ray Data's inner parts, held on the version that is pinned."""

from __future__ import annotations

import subprocess
import sys

import pytest


def test_the_parts_of_ray_data_that_raykit_touches_are_there():
    # In a process of its own: this one stays without ray.
    code = """
import inspect
import ray.data
from ray.actor import ActorMethod
from ray._private.state import available_resources_per_node
from ray.data import DataContext, Dataset
from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType
from ray.data._internal.tensor_extensions import arrow as tensors
from ray.data._internal.execution.interfaces.ref_bundle import BlockEntry, RefBundle
from ray.data.block import BlockAccessor, BlockMetadata

context = DataContext.get_current()
for name in ("enable_progress_bars", "print_on_execution_start"):
    assert hasattr(context, name), name
assert hasattr(context.execution_options, "preserve_order")
assert not inspect.signature(available_resources_per_node).parameters
assert "_generator_backpressure_num_objects" in inspect.signature(ActorMethod._remote).parameters
assert list(inspect.signature(Dataset.iter_internal_ref_bundles).parameters) == ["self"]
assert "blocks" in RefBundle.__dataclass_fields__ and set(BlockEntry.__dataclass_fields__) == {"ref", "metadata"}
assert {"num_rows", "size_bytes"} <= set(BlockMetadata.__dataclass_fields__ | vars(BlockMetadata))
import numpy as np
import pyarrow as pa
fixed = tensors.ArrowTensorArray.from_numpy(np.zeros((2, 2, 2)))
ragged = tensors.ArrowVariableShapedTensorArray.from_numpy(np.array([np.zeros((1, 2)), np.zeros((2, 2))], dtype=object))
assert fixed.type.shape == (2, 2) and ragged.type.ndim == 2 and issubclass(tensors.ArrowConversionError, Exception)
assert [each.shape for each in (*fixed.to_numpy(zero_copy_only=False), *ragged.to_numpy(zero_copy_only=False))][1:3] == [(2, 2), (1, 2)]
assert pa.types.is_large_binary(ArrowPythonObjectType().storage_type)
accessor = BlockAccessor.for_block(pa.table({"x": [1]}))
assert accessor.num_rows() == 1 and accessor.to_arrow().column("x").to_pylist() == [1]
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.ray
@pytest.mark.slow
def test_the_parts_of_ray_data_that_observation_touches_are_there():
    code = """
import inspect, os, tempfile
import ray, ray.data
from ray.data import context
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.interfaces import PhysicalOperator
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator
from ray.data._internal.execution.operators.base_physical_operator import AllToAllOperator
from ray.data._internal.execution.operators.input_data_buffer import InputDataBuffer
from ray.data._internal.execution.operators.limit_operator import LimitOperator
from ray.data._internal.execution.operators.task_pool_map_operator import TaskPoolMapOperator
from ray.exceptions import UserCodeException
from raykit.engine.observe import VARIABLE

assert context.EXECUTION_CALLBACKS_ENV_VAR == VARIABLE
steps = ("before_execution_starts", "on_execution_step", "after_execution_succeeds", "after_execution_fails")
assert [name for name in vars(ExecutionCallback) if not name.startswith("_")] == list(steps)
assert list(inspect.signature(ExecutionCallback.after_execution_fails).parameters) == ["self", "executor", "error"]

# What an operator does not override it does not know: the answers of the class below are zero.
for kind in (TaskPoolMapOperator, ActorPoolMapOperator):
    assert kind.current_logical_usage is not PhysicalOperator.current_logical_usage, kind
assert AllToAllOperator.current_logical_usage is PhysicalOperator.current_logical_usage
assert ActorPoolMapOperator.get_actor_info is not PhysicalOperator.get_actor_info
assert TaskPoolMapOperator.get_actor_info is PhysicalOperator.get_actor_info

class Seen(ExecutionCallback):
    num_steps = 0
    ended = None

    def before_execution_starts(self, executor):
        Seen.dataset = executor._dataset_id
        Seen.topology = executor._topology

    def on_execution_step(self, executor):
        Seen.num_steps += 1

    def after_execution_succeeds(self, executor):
        Seen.ended = True

    def after_execution_fails(self, executor, error):
        Seen.ended = error

os.environ[VARIABLE] = "__main__.Seen"

class Same:
    def __call__(self, batch):
        return batch

def bad(row):
    raise ValueError("no good")

with tempfile.TemporaryDirectory(prefix="rk-", dir="/tmp", ignore_cleanup_errors=True) as folder:
    ray.init(address="local", num_cpus=2, include_dashboard=False, _temp_dir=folder, object_store_memory=100_000_000)
    ray.data.range(40, override_num_blocks=4).map_batches(Same, concurrency=1, num_cpus=0.5).limit(30).materialize()
    assert isinstance(Seen.dataset, str) and Seen.num_steps and Seen.ended is True
    buffer, read, same, limit = Seen.topology
    assert isinstance(buffer, InputDataBuffer) and isinstance(same, ActorPoolMapOperator), list(Seen.topology)
    assert isinstance(limit, LimitOperator) and limit._limit == 30 and limit.has_completed() is True
    assert read.input_dependencies == [buffer] and read.name == "ReadRange"
    assert buffer._logical_operators and buffer._logical_operators == read._logical_operators
    assert same._logical_operators[0].can_modify_num_rows is True
    for operator, state in Seen.topology.items():
        assert isinstance(operator.has_completed(), bool) and isinstance(operator.has_execution_finished(), bool), operator
        assert isinstance(operator.num_active_tasks(), int) and isinstance(state.has_pending_bundles(), bool), operator
        for flag in (operator._in_task_submission_backpressure, operator._in_task_output_backpressure):
            assert isinstance(flag, bool), operator
        usage = operator.running_logical_usage()
        assert usage.cpu >= 0 and usage.gpu == 0, usage
        assert operator.metrics.num_tasks_failed == 0
    assert isinstance(same.get_actor_info().running, int)
    assert limit.metrics.num_row_inputs_received >= 30 and limit.metrics.row_outputs_taken == 30
    assert ray.data.from_items([{"x": 1}]).map(lambda row: row).materialize().count() == 1
    buffer, same = Seen.topology
    assert same._logical_operators[0].can_modify_num_rows is False
    assert not any(each in same._logical_operators for each in buffer._logical_operators)
    try:
        ray.data.range(1).map(bad).materialize()
    except Exception:
        pass
    assert isinstance(Seen.ended, UserCodeException), Seen.ended
    text = str(Seen.ended)
    assert text.rindex("ValueError: no good") < text.rindex("The above exception was the direct cause of"), text
    ray.shutdown()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_parts_of_both_copies_of_cloudpickle_that_raykit_touches_are_there():
    code = """
import inspect
import cloudpickle.cloudpickle as ours
import ray.cloudpickle.cloudpickle as rays
from raykit.wire.classes import LOOK_UP, MEMORY, SET_STATE
kinds = {"WeakKeyDictionary", "WeakValueDictionary", "lock", "function"}
for module in (ours, rays):
    assert {type(getattr(module, name)).__name__ for name in (*MEMORY, LOOK_UP, SET_STATE)} == kinds
    assert f"{LOOK_UP}(class_tracker_id, skeleton_class)" in inspect.getsource(module._make_skeleton_class)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
