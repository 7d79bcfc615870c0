"""The guard of a cluster that is paid for by the hour: it lives in the hub, so that a closed laptop does not burn money."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

import ray

from raykit.commands import Stop
from raykit.decisions import SuspendCluster, WarnSuspend
from raykit.engine.arbiter import Tell
from raykit.engine.registry import Registry
from raykit.engine.setting import ClusterSetting
from raykit.engine.suspend import shut_down, suspend_pods
from raykit.events import CLUSTER, CostCounted, Decided
from raykit.policy.guard import Use, decide, decide_on_cost, duration_words, idle_since
from raykit.views import ClusterView

LOOK_S = 5.0
LOOKS_WITHIN_LIMIT = 10
WRITE_S = 60.0
LEAVE_S = 5.0  # for those who are connected to see how runs ended, and why
STOP_S, STOP_LOOKS = 60.0, 120  # for runs to come to a commit

logger = logging.getLogger(__name__)

Look = Callable[[float], Awaitable[ClusterView]]
"""Gives the cluster, with what its nodes use where they answer in so many seconds."""


class Guard:
    """Looks at what is used and what it costs, and suspends the cluster when nothing was for too long, or it cost too much."""

    def __init__(self, setting: ClusterSetting, registry: Registry, look: Look, tell: Tell) -> None:
        self._setting, self._registry = setting, registry
        self._look, self._tell = look, tell
        self._idle_since: float | None = None
        self._session = ray.get_runtime_context().get_session_name()
        self._num_paid, self._cost = 0, 0.0
        self._counted_s = self._written_s = time.monotonic()
        self._is_told = False
        self.words = ""
        """What it is about to do, for who asks for the cluster's status."""

    async def watch(self) -> None:
        """Look until the cluster is suspended, which ends this process too."""
        self._cost = await asyncio.to_thread(self._counted_before)
        pause_s = min(LOOK_S, self._setting.idle_s / LOOKS_WITHIN_LIMIT) if self._setting.idle_s else LOOK_S
        while True:
            try:
                end = await self._decided()
                self._is_told = self._is_told and end is not None
                if end is not None:
                    await self._suspend(end)
            except Exception:  # what breaks one look must not leave a cluster unguarded
                logger.exception("a look of the guard broke off")
            await asyncio.sleep(pause_s)

    async def _decided(self) -> SuspendCluster | None:
        """Look, and say whether it is to be suspended now."""
        view = await self._seen()
        decisions = [await asyncio.to_thread(self._on_cost, view), await asyncio.to_thread(self._on_idleness, view)]
        self.words = next((words_of(each) for each in decisions if isinstance(each, WarnSuspend)), "")
        return next((each for each in decisions if isinstance(each, SuspendCluster)), None)

    def _on_idleness(self, view: ClusterView | None) -> WarnSuspend | SuspendCluster | None:
        if self._setting.idle_s is None:
            return None
        now_unix_s = time.time()
        use = use_of(view, sum(not each.ended for each in self._registry.views()))
        words = use.idle_words(self._setting.idle_gpu_utilization)
        self._idle_since = idle_since(self._idle_since, words, now_unix_s=now_unix_s)
        return decide(self._idle_since, words, idle_s=self._setting.idle_s, now_unix_s=now_unix_s)

    def _on_cost(self, view: ClusterView | None) -> WarnSuspend | SuspendCluster | None:
        if self._setting.budget is None:
            return None
        now_s, cost_per_h = time.monotonic(), self._num_paid * self._setting.price_per_node_h
        self._cost += cost_per_h * (now_s - self._counted_s) / 3600
        self._counted_s = now_s
        if view is not None:
            self._num_paid = num_paid(view, is_head_paid=not self._setting.account_folder)
        if now_s - self._written_s > WRITE_S:
            self._written_s = now_s
            self._registry.log.append(CLUSTER, [CostCounted(session=self._session, cost=self._cost)])
        return decide_on_cost(self._cost, budget=self._setting.budget, cost_per_h=cost_per_h)

    async def _seen(self) -> ClusterView | None:
        """Look; a look that fails tells nothing."""
        try:
            return await self._look(LOOK_S if self._setting.idle_gpu_utilization is not None else 0.0)
        except Exception:
            logger.exception("looking at what is used")
            return None

    def _counted_before(self) -> float:
        """Give what an earlier hub has counted since the cluster came up."""
        cost, number = 0.0, 0
        while records := self._registry.log.read(after=number, kinds=(CostCounted,)):
            number = records[-1].number
            counted = [record.event for record in records if isinstance(record.event, CostCounted)]
            cost = max([cost, *(each.cost for each in counted if each.session == self._session)])
        return cost

    async def _suspend(self, decision: SuspendCluster) -> None:
        """Have runs save what they have, and give the machines back, unless somebody came to use them meanwhile."""
        self.words = f"being suspended: {decision.reason}"
        await self._stop_runs()
        if not self._is_told:
            self._is_told = True
            told = Decided(decision="SuspendCluster", about=(), reason=decision.reason)
            await asyncio.to_thread(self._registry.log.append, CLUSTER, [told])
        await asyncio.sleep(LEAVE_S)
        if await self._decided() is None:
            return
        try:
            if self._setting.account_folder:
                await asyncio.to_thread(suspend_pods, self._setting, decision.reason)
            else:
                await asyncio.to_thread(shut_down)
        except (OSError, LookupError) as exc:
            logger.exception("suspending %s", self._setting.name)
            self.words = f"{decision.reason}, and it could not be suspended: {exc}"

    async def _stop_runs(self) -> None:
        for view in self._registry.views():
            if not view.ended:
                try:
                    await self._tell(view.name, Stop(run=view.name))
                except Exception as exc:  # it ended since, or its host is gone: nothing of it could be saved
                    logger.info("%s was not stopped before its cluster is suspended: %s", view.name, exc)
        for _ in range(STOP_LOOKS):
            if all(view.ended for view in self._registry.views()):
                return
            await asyncio.sleep(STOP_S / STOP_LOOKS)


def use_of(view: ClusterView | None, num_runs: int) -> Use:
    """Say what is used; where there was no view it is not known."""
    if view is None:
        return Use(num_runs=num_runs, num_slots_held=None)
    held = view.num_cpus - view.num_cpus_free + view.num_gpus - view.num_gpus_free
    return Use(num_runs=num_runs, num_slots_held=held, gpu_utilization=_busiest(view))


def num_paid(view: ClusterView, *, is_head_paid: bool) -> int:
    """Say for how many nodes the price is paid: on Kubernetes it is the workers'."""
    return sum(node.alive for node in view.nodes) - (not is_head_paid)


def words_of(warning: WarnSuspend) -> str:
    """Tell who asks how long there is, and why."""
    return f"suspended in {duration_words(warning.left_s)}: {warning.reason}"


def _busiest(view: ClusterView) -> float | None:
    """Give the utilization of the busiest GPU; None where one is not known, or there is none."""
    known: list[float | None] = []
    for node in view.nodes:
        if node.alive and node.num_gpus:
            known += [gpu.utilization for gpu in node.use.gpus] if node.use and node.use.gpus else [None]
    return max((each for each in known if each is not None), default=None) if None not in known else None
