"""What raykit needs of Ray Data's inner parts, held on the version that is pinned."""

from __future__ import annotations

import subprocess
import sys


def test_the_parts_of_ray_data_that_raykit_touches_are_there():
    # In a process of its own: this one stays without ray.
    code = """
import logging
from inspect import signature
import ray.data
from ray.data import ActorPoolStrategy, DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.streaming_executor import StreamingExecutor
from ray.data._internal.execution.streaming_executor_state import OpState
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator

for name in ("before_execution_starts", "on_execution_step", "after_execution_succeeds"):
    assert list(signature(getattr(ExecutionCallback, name)).parameters) == ["self", "executor"], name
assert {"force", "exception"} <= set(signature(StreamingExecutor.shutdown).parameters)
assert {"min_size", "max_size", "initial_size"} <= set(signature(ActorPoolStrategy).parameters)
context = DataContext.get_current()
for name in ("enable_progress_bars", "print_on_execution_start", "custom_execution_callback_classes", "actor_task_retry_on_errors"):
    assert hasattr(context, name), name
context.set_config("raykit.test", 1)
assert context.get_config("raykit.test") == 1
assert context.get_config("raykit.none") is None
assert callable(OpState.total_enqueued_input_blocks) and callable(ActorPoolMapOperator.get_autoscaling_actor_pools)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
