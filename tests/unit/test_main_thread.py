"""What of Ray's start of workers the main thread of a training's ranks rests on."""

import inspect

import pytest
import ray._private.worker
from ray._private import ray_constants
from ray._private.runtime_env import setup_hook
from ray._private.workers import default_worker

from raykit.engine import main_thread


def test_ray_calls_the_hook_by_its_variable_before_the_worker_takes_tasks():
    assert ray_constants.WORKER_PROCESS_SETUP_HOOK_ENV_VAR == main_thread.HOOK
    source = inspect.getsource(default_worker)
    assert source.index("load_and_execute_setup_hook(") < source.index("worker.main_loop()")
    assert "load_class" in inspect.getsource(setup_hook)
    assert "self.core_worker.run_task_loop()" in inspect.getsource(ray._private.worker.Worker.main_loop)


def test_a_process_without_the_hook_has_no_main_thread_to_give():
    with pytest.raises(RuntimeError, match="waits for Ray's tasks"):
        main_thread.run_in_main_thread(lambda: None)
