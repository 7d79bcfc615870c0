"""The sampler of a node: what the processes of runs use there, and the machine beside them. It knows no Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import psutil

from raykit.engine.telemetry.nvml import GpuLook, Gpus
from raykit.engine.telemetry.processes import Processes, TreeUse
from raykit.events import CLUSTER, GpuUse, NodeSampled, ProcessUse, UseSampled
from raykit.store.samples import Told
from raykit.views.values import total

LEAST_S = 0.5  # CPU time is counted in hundredths of a second


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """The process of a replica or a training worker, as its run has told of it."""

    run: str
    worker: str
    pid: int
    stage: str = ""
    rank: int | None = None

    @property
    def title(self) -> str:
        return f"{self.run} {self.worker if self.rank is None else f'rank {self.rank}'}"


class Sampler:
    """Looks when it is asked, ``LEAST_S`` after its start at the earliest: use of CPUs is a mean between two looks."""

    def __init__(self, node: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._node, self._clock = node, clock
        self._processes, self._gpus = Processes(clock), Gpus(clock)
        self._machine = _machine_s()
        self._looked_s = clock()
        self._num_cpus: float | None = None

    def look(self, followed: Sequence[Followed]) -> list[Told]:
        """Give a sample of the node, and one of each run that has processes here."""
        trees = self._processes.look(each.pid for each in followed)
        look = self._gpus.look()
        memory = psutil.virtual_memory()
        node = NodeSampled(
            node=self._node,
            num_cpus=self._machine_cpus(),
            memory_used_bytes=memory.total - memory.available,
            memory_bytes=memory.total,
            gpus=None if look.gpus is None else tuple(_titled(each, followed, trees) for each in look.gpus),
            fault=look.fault,
        )
        uses: dict[str, list[ProcessUse]] = {}
        for each in followed:
            uses.setdefault(each.run, []).append(process_use(each.worker, trees[each.pid], look.gpus))
        return [(CLUSTER, node), *((run, UseSampled(node=self._node, uses=tuple(those))) for run, those in uses.items())]

    def _machine_cpus(self) -> float:
        """Give the cores at work since the last look, or what that said where it was just now."""
        passed_s = self._clock() - self._looked_s
        if passed_s < LEAST_S:
            if self._num_cpus is not None:
                return self._num_cpus
            time.sleep(LEAST_S - passed_s)
        before_s, self._machine = self._machine, _machine_s()
        before_looked_s, self._looked_s = self._looked_s, self._clock()
        self._num_cpus = max(0.0, self._machine - before_s) / (self._looked_s - before_looked_s)
        return self._num_cpus


def process_use(worker: str, tree: TreeUse, gpus: Sequence[GpuLook] | None) -> ProcessUse:
    """Join a tree of processes with the GPUs whose memory it holds.

    One that no GPU names uses none, if all GPUs tell who uses them: a container may hide the processes of others, or
    this one's from the driver.
    """
    use = ProcessUse(worker=worker, num_cpus=tree.num_cpus, memory_bytes=tree.memory_bytes)
    if gpus is None or not tree.pids:
        return use
    leaves = [each for each in gpus if not any(other.use.gpu.startswith(f"{each.use.gpu}:") for other in gpus)]
    mine = [each for each in leaves if each.users and tree.pids & each.users.memory_bytes.keys()]
    if mine:
        return replace(
            use,
            num_gpus=total(_share(each, tree.pids) for each in mine),
            gpu_memory_bytes=total(_held_bytes(each, tree.pids) for each in mine),
            gpu_fault=next((f"GPU {each.use.gpu}: {each.use.fault}" for each in mine if each.use.fault), ""),
        )
    if all(each.users is not None for each in leaves):
        return replace(use, num_gpus=0.0, gpu_memory_bytes=0)
    return use


def _share(gpu: GpuLook, pids: frozenset[int]) -> float | None:
    """Give the share of a GPU's time that these processes take: all of it where nobody else uses the GPU."""
    users = gpu.users
    if users is None or users.memory_bytes.keys() <= pids:
        return gpu.use.utilization
    return None if users.shares is None else sum(share for pid, share in users.shares.items() if pid in pids)


def _held_bytes(gpu: GpuLook, pids: frozenset[int]) -> int | None:
    held: Mapping[int, int | None] = gpu.users.memory_bytes if gpu.users else {}
    return total(num_bytes for pid, num_bytes in held.items() if pid in pids)


def _titled(gpu: GpuLook, followed: Sequence[Followed], trees: Mapping[int, TreeUse]) -> GpuUse:
    """Name the users of a GPU by run and worker, and by its id a process that no run has told of."""
    if gpu.users is None:
        return gpu.use
    titles = {pid: each.title for each in followed for pid in trees[each.pid].pids}
    named = (titles.get(pid, f"process {pid}") for pid in gpu.users.memory_bytes)
    return replace(gpu.use, users=tuple(dict.fromkeys(named)))


def _machine_s() -> float:
    """Give the seconds that all CPUs of the machine have worked."""
    times = psutil.cpu_times()
    return (
        sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    )
