"""What a node's sampler has seen, for Prometheus: by Ray's own metrics, at the port from which it is scraped anyway."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from ray.util.metrics import Gauge

from raykit.engine.telemetry.sampler import Followed
from raykit.events import GpuUse, NodeSampled, ProcessUse, UseSampled
from raykit.store.samples import Told
from raykit.views.values import together

PROCESS_TAGS = ("run", "stage", "rank", "node")  # of no worker: a series is kept for ever, and workers come and go
GPU_TAGS = ("node", "gpu")
PROCESS_GAUGES = {
    "raykit_process_cpus": "Cores that a rank, or a stage's replicas on a node, keep at work, with the processes that they started",
    "raykit_process_memory_bytes": "Resident memory of the same processes",
    "raykit_process_gpus": "GPUs that they keep at work",
    "raykit_process_gpu_memory_bytes": "Memory of GPUs that they hold",
}
GPU_GAUGES = {
    "raykit_gpu_utilization": "Share of time in which the GPU works, 0 to 1",
    "raykit_gpu_memory_used_bytes": "Memory of the GPU that is held",
    "raykit_gpu_power_watts": "Power that the GPU draws",
    "raykit_gpu_temperature_celsius": "Temperature of the GPU",
}

Tags = tuple[str, ...]
Series = tuple[str, Tags]


class Metrics:
    """The gauges of one sampler. What is unknown, or over, is no number."""

    def __init__(self) -> None:
        self._gauges = {name: Gauge(name, about, PROCESS_TAGS) for name, about in PROCESS_GAUGES.items()} | {
            name: Gauge(name, about, GPU_TAGS) for name, about in GPU_GAUGES.items()
        }
        self._told: set[Series] = set()

    def tell(self, told: Iterable[Told], followed: Sequence[Followed]) -> None:
        """Set the gauges to what was sampled."""
        values = dict(series(told, followed))
        for name, tags in self._told | values.keys():
            keys = PROCESS_TAGS if name in PROCESS_GAUGES else GPU_TAGS
            value = values.get((name, tags))
            self._gauges[name].set(math.nan if value is None else value, dict(zip(keys, tags, strict=True)))
        self._told = set(values)


def series(told: Iterable[Told], followed: Sequence[Followed]) -> Iterator[tuple[Series, float | None]]:
    """Give each series of a sample, and its value; None is unknown."""
    by_worker = {(each.run, each.worker): each for each in followed}
    for run, sample in told:
        if isinstance(sample, NodeSampled):
            for gpu in sample.gpus or ():
                yield from _of_gpu(gpu, (sample.node, gpu.gpu))
        else:
            yield from _of_processes(sample, [by_worker[run, use.worker] for use in sample.uses])


def _of_gpu(gpu: GpuUse, tags: Tags) -> Iterator[tuple[Series, float | None]]:
    values = (gpu.utilization, gpu.memory_used_bytes, gpu.power_w, gpu.temperature_c)
    yield from (((name, tags), value) for name, value in zip(GPU_GAUGES, values, strict=True))


def _of_processes(sample: UseSampled, followed: Sequence[Followed]) -> Iterator[tuple[Series, float | None]]:
    by_tags: dict[Tags, list[ProcessUse]] = {}
    for use, about in zip(sample.uses, followed, strict=True):
        rank = "" if about.rank is None else str(about.rank)
        by_tags.setdefault((about.run, about.stage, rank, sample.node), []).append(use)
    for tags, uses in by_tags.items():
        use = together(sample.node, uses)
        values = (use.num_cpus, use.memory_bytes, use.num_gpus, use.gpu_memory_bytes)
        yield from (((name, tags), value) for name, value in zip(PROCESS_GAUGES, values, strict=True))
