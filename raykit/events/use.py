"""What machines and processes use, as the sampler of a node sees it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuUse:
    """What the driver tells of a GPU, or of an instance that MIG cut from one (``gpu`` is then ``0:1``). None is unknown.

    ``utilization`` is a share of time, ``users`` the processes that hold memory of it, by run and worker. ``fault`` says
    in the driver's words that it cannot be read, such as a GPU that is lost.
    """

    gpu: str
    name: str | None = None
    utilization: float | None = None
    memory_used_bytes: int | None = None
    memory_bytes: int | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    throttled_by: tuple[str, ...] | None = None
    users: tuple[str, ...] | None = None
    fault: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSampled:
    """What the machine of a node uses, whoever uses it; ``num_cpus`` are cores at work.

    ``gpus`` is None where no driver tells of them, ``fault`` then says why.
    """

    node: str
    num_cpus: float
    memory_used_bytes: int
    memory_bytes: int
    gpus: tuple[GpuUse, ...] | None
    fault: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostCounted:
    """What the nodes of a cluster have cost since it came up, which is one ``session`` of Ray, by the price that was told."""

    session: str
    cost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessUse:
    """What the process of a replica or a training worker uses, with those that it started. None is unknown.

    ``num_cpus`` and ``num_gpus`` are cores and GPUs kept at work (two at half are one), ``memory_bytes`` is resident, pages
    that its processes share counted in each. ``gpu_fault`` says that a GPU under it cannot be read.
    """

    worker: str
    num_cpus: float | None = None
    memory_bytes: int | None = None
    num_gpus: float | None = None
    gpu_memory_bytes: int | None = None
    gpu_fault: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UseSampled:
    """What the processes of a run use on one node, seen from outside by the node's sampler."""

    node: str
    uses: tuple[ProcessUse, ...]
