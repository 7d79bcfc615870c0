"""The guard of a cluster that is paid for by the hour: it lives in the hub, so that a closed laptop does not burn money."""

from __future__ import annotations

import asyncio
import logging
import time

import ray

from raykit.decisions import SuspendCluster, WarnIdle
from raykit.engine.registry import Registry
from raykit.engine.setting import ClusterSetting
from raykit.engine.suspend import shut_down, suspend_pods
from raykit.policy.idle import Use, decide, idle_since

LOOK_S = 5.0
LOOKS_WITHIN_LIMIT = 10

logger = logging.getLogger(__name__)


class IdleGuard:
    """Looks at what is used, and suspends the cluster when nothing was for too long."""

    def __init__(self, setting: ClusterSetting, registry: Registry) -> None:
        self._setting = setting
        self._registry = registry
        self.words = ""
        """What it is about to do, for who asks for the cluster's status."""

    async def watch(self, idle_s: float) -> None:
        """Look until the cluster is suspended, which ends this process too."""
        since = None
        while True:
            since = idle_since(since, await asyncio.to_thread(self._use), now_unix_s=time.time())
            decision = decide(since, idle_s=idle_s, now_unix_s=time.time())
            self.words = (
                f"idle: suspended in {decision.left_s:.0f} s unless something runs" if isinstance(decision, WarnIdle) else ""
            )
            if isinstance(decision, SuspendCluster):
                self.words = await asyncio.to_thread(self._suspend, decision.reason)
            await asyncio.sleep(min(LOOK_S, idle_s / LOOKS_WITHIN_LIMIT))

    def _use(self) -> Use:
        """Look at what is used; a look that fails tells nothing, and must not end the guard."""
        try:
            num_runs = sum(not view.ended for view in self._registry.views())
            total, free = ray.cluster_resources(), ray.available_resources()
        except Exception:
            logger.exception("looking at what is used")
            return Use(num_runs=0, num_slots_held=None)
        held = sum(total.get(each, 0) - free.get(each, 0) for each in ("CPU", "GPU"))
        return Use(num_runs=num_runs, num_slots_held=held)

    def _suspend(self, reason: str) -> str:
        try:
            if self._setting.account_folder:
                suspend_pods(self._setting, reason)
            else:
                shut_down()
        except (OSError, LookupError) as exc:
            logger.exception("suspending %s", self._setting.name)
            return f"idle, and could not be suspended: {exc}"
        return f"suspended: {reason}"
