"""A run that waits for another one, which it has started: Ray lends the CPUs of a task that waits in Ray."""

from __future__ import annotations

import sys
import threading

from raykit.engine.setting import NAMESPACE


def wait_for_news(address: str, run: str, *, after: int, wait_s: float) -> bool:
    """Wait until the log of this process's cluster has news of a run above ``after``, up to ``wait_s``.

    Return whether it was waited for: only a task of the cluster at ``address`` (of its GCS) does, in its main thread.
    While it waits, other tasks can use its CPUs, as with ``ray.get``. It resumes without waiting for them to be free.
    """
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized() or threading.current_thread() is not threading.main_thread():
        return False
    context = ray.get_runtime_context()
    if context.worker.mode != ray.WORKER_MODE or context.get_actor_id() is not None or context.gcs_address != address:
        return False
    try:
        ray.get(ray.get_actor("hub", namespace=NAMESPACE).news.remote(run, after, wait_s))
    except (ValueError, ray.exceptions.RayActorError, ray.exceptions.RayTaskError):  # the door says what is wrong
        return False
    return True
