"""User code in the main thread of a process of Ray's, as where Python itself starts it.

Python lets only the main thread set signal handlers, and there Ray's worker waits for tasks. A process that is started with
:data:`SETUP` waits for them in another thread, so that its main thread is free.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Callable

HOOK = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"
"""By this variable Ray hears of what a worker calls before it takes tasks (``runtime_env``'s ``worker_process_setup_hook``)."""

SETUP = {"env_vars": {HOOK: f"{__name__}.free_main_thread"}}
"""The runtime environment of an actor whose main thread runs user code."""

_jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
_thread: threading.Thread | None = None


def free_main_thread() -> None:
    """Have this process, a worker of Ray's that is about to wait for tasks, wait for them in another thread."""
    import ray._private.worker

    worker = ray._private.worker.global_worker  # noqa: SLF001

    def take_tasks() -> None:
        worker.core_worker.run_task_loop()
        os._exit(0)  # the main thread may be in user code that does not end

    def main_loop() -> None:
        global _thread  # noqa: PLW0603
        _thread = threading.main_thread()
        threading.Thread(target=take_tasks, name="ray-tasks", daemon=True).start()
        while True:
            _jobs.get()()

    worker.main_loop = main_loop


def run_in_main_thread(function: Callable[[], None]) -> threading.Thread:
    """Call a function in the main thread, with an event loop of its own, and return that thread at once.

    Raises:
        RuntimeError: this process was not started with :data:`SETUP`.
    """
    if _thread is None:
        raise RuntimeError("The main thread of this process waits for Ray's tasks.")

    def run() -> None:
        asyncio.set_event_loop(asyncio.new_event_loop())
        function()

    _jobs.put(run)
    return _thread
