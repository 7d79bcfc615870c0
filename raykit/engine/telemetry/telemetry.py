"""The hub's part of telemetry: a sampler on each node that has processes of a run, asked in turn, and its samples in the log.

A sampler is started when there is somebody to follow, or when a person wants to see the nodes: neither the start of a
cluster nor a short cell pays for it. It ends with the hub, and the next hub starts another.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raykit.engine.setting import ClusterSetting
from raykit.engine.telemetry.metrics import Metrics
from raykit.engine.telemetry.sampler import Followed, Sampler
from raykit.errors import RaykitError
from raykit.events import (
    CLUSTER,
    ReplicaEnded,
    ReplicaLost,
    ReplicaStarted,
    RunAccepted,
    RunEnded,
    WorkerEnded,
    WorkerLost,
    WorkerStarted,
    WorldFormed,
)
from raykit.store.log import Log
from raykit.store.samples import Samples, Told
from raykit.views import RunView, fold

ABOUT_PROCESSES = (
    *(RunAccepted, RunEnded, ReplicaStarted, ReplicaEnded, ReplicaLost),
    *(WorkerStarted, WorkerEnded, WorkerLost, WorldFormed),
)

WAITS = 0.9  # the part of the time between two looks that a sampler waits for the second one

logger = logging.getLogger(__name__)


class Telemetry:
    """Asks the samplers, each ``sample_s`` of the cluster's setting."""

    def __init__(self, setting: ClusterSetting) -> None:
        self._setting = setting
        self._log = Log(setting.log_path)  # one of its own: so the hub sees that there is something new
        self._samples = Samples(self._log)
        self._views: dict[str, RunView] = {}
        self._number, self._version = 0, -1
        self._samplers: dict[str, Any] = {}
        self._asked: dict[str, asyncio.Task[None]] = {}
        self._followed_on: set[str] = set()
        self._silent: set[str] = set()
        self._reading, self._writing = asyncio.Lock(), asyncio.Lock()

    async def run(self) -> None:
        """Look for ever. What breaks a look does not break the next."""
        while True:
            begun_s = time.monotonic()
            try:
                await self.look(timeout_s=self._setting.sample_s, after_s=min(self._setting.sample_s, 1.0) * WAITS)
            except Exception:
                logger.exception("a look at the nodes broke off")
            await asyncio.sleep(max(0.0, begun_s + self._setting.sample_s - time.monotonic()))

    async def look(self, *, timeout_s: float, after_s: float = 0.0, everywhere: bool = False) -> None:
        """Sample the nodes on which runs have processes, or all; wait for those that answer in time, not for the others."""
        async with self._reading:
            followed = await asyncio.to_thread(self._followed)
            # Once more where the last process has gone: its metrics end so.
            wanted, self._followed_on = followed.keys() | self._followed_on, set(followed)
            if wanted or everywhere:
                nodes = await asyncio.to_thread(_living)
                self._samplers = {node: sampler for node, sampler in self._samplers.items() if node in nodes}
                for node in (nodes.keys() if everywhere else wanted & nodes.keys()) - self._asked.keys():
                    sampler = self._samplers.get(node) or self._start(node, nodes[node])
                    self._asked[node] = asyncio.create_task(self._ask(node, sampler, followed.get(node, ()), after_s))
        if self._asked:
            await asyncio.wait(self._asked.values(), timeout=timeout_s)

    async def _ask(self, node: str, sampler: Any, followed: Sequence[Followed], after_s: float) -> None:
        """Write down what a sampler tells. One that tells nothing is named in the hub's log once, not each second."""
        try:
            told = await sampler.look.remote(followed, after_s)
            async with self._reading:
                await asyncio.to_thread(self._catch_up)
            told = [(run, sample) for run, sample in told if run in self._views or run == CLUSTER]  # others ended meanwhile
            async with self._writing:
                await asyncio.to_thread(self._samples.write, told, time.monotonic())
            self._silent.discard(node)
        except (ray.exceptions.RayError, RaykitError):
            if node not in self._silent:
                self._silent.add(node)
                logger.exception("nothing is sampled of node %s", node)
        finally:
            del self._asked[node]

    def _followed(self) -> dict[str, list[Followed]]:
        """Give the processes of runs that go on, by node."""
        self._catch_up()
        by_node: dict[str, list[Followed]] = {}
        for view in self._views.values():
            for node, followed in processes_of(view):
                by_node.setdefault(node, []).append(followed)
        return by_node

    def _catch_up(self) -> None:
        """Read which runs go on, and where their processes are."""
        version = self._log.version()
        if version != self._version:
            self._version = version
            while records := self._log.read(after=self._number, kinds=ABOUT_PROCESSES):
                for record in records:
                    view = self._views.get(record.run)
                    if view is None and isinstance(record.event, RunAccepted):
                        view = RunView(name=record.run)
                    if view is not None:  # else it is over, and this was on its way
                        self._views[record.run] = fold(view, record)
                self._number = records[-1].number
            self._views = {run: view for run, view in self._views.items() if not view.ended}

    def _start(self, node: str, node_id: str) -> Any:
        affinity = NodeAffinitySchedulingStrategy(node_id, soft=False)
        sampler = NodeSampler.options(scheduling_strategy=affinity).remote(node)  # type: ignore[attr-defined]
        self._samplers[node] = sampler
        return sampler


@ray.remote(num_cpus=0, max_restarts=-1)
class NodeSampler:
    """The sampler in a process of its own on its node."""

    def __init__(self, node: str) -> None:
        self._sampler, self._metrics = Sampler(node), Metrics()
        self._took_s = 0.0

    def look(self, followed: Sequence[Followed], after_s: float) -> list[Told]:
        """Wait, and look: a worker of Ray that has nothing to do wakes 100 times a second, which takes 1 % of a core.

        The answer comes after ``after_s``, where a look takes less: one that is late would cost the next its turn.
        """
        time.sleep(max(0.0, after_s - self._took_s))
        begun_s = time.monotonic()
        told = self._sampler.look(followed)
        self._metrics.tell(told, followed)
        self._took_s = time.monotonic() - begun_s
        return told


def processes_of(view: RunView) -> Iterator[tuple[str, Followed]]:
    """Give the processes of a run that are there, each with its node."""
    for stage in view.stages:
        for each in stage.replicas:
            if not each.gone:
                yield each.node, Followed(run=view.name, worker=each.replica, pid=each.pid, stage=stage.name)
    for rank in view.ranks:
        if not rank.lost:
            yield rank.node, Followed(run=view.name, worker=rank.worker, pid=rank.pid, rank=rank.rank)


def _living() -> dict[str, str]:
    """Give the ids of the nodes that live, by their short form."""
    return {node["NodeID"][:8]: node["NodeID"] for node in ray.nodes() if node["Alive"]}
