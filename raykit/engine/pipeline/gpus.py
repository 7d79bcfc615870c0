"""What a pipeline's replicas use of their GPUs: a replica cannot count it itself, so it is read from what the samplers tell."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from statistics import mean

from raykit.engine.run import RunContext
from raykit.events import NodeSampled, ProcessUse, UseSampled
from raykit.store.log import Log

SAMPLES = 8  # of a replica, over which its use is a mean; fewer say nothing yet


class GpuUses:
    """The newest samples of each replica. Simulated GPUs are not used, whatever else works on this machine's own."""

    def __init__(self, context: RunContext) -> None:
        self._log, self._run = Log(context.cluster.log_path), context.name
        self._is_simulated = context.cluster.simulated_gpus
        self._number = self._log.read(run=context.name, limit=1)[0].number
        self._uses: dict[str, deque[ProcessUse]] = {}
        self._gpu_bytes: int | None = None

    def look(self) -> None:
        """Take in what was told since the last time."""
        while not self._is_simulated and (records := self._log.read(after=self._number, kinds=(UseSampled, NodeSampled))):
            self._number = records[-1].number
            for record in records:
                if isinstance(record.event, NodeSampled):
                    sizes = [gpu.memory_bytes for gpu in record.event.gpus or () if gpu.memory_bytes]
                    self._gpu_bytes = min(sizes, default=self._gpu_bytes)
                elif isinstance(record.event, UseSampled) and record.run == self._run:
                    for use in record.event.uses:
                        self._uses.setdefault(use.worker, deque(maxlen=SAMPLES)).append(use)

    def of(self, replicas: Iterable[str]) -> tuple[float, float] | None:
        """Give the GPUs that one of these replicas keeps at work, and the most memory that one held, in memories of one GPU.

        None where that is unknown, or not known for long enough.
        """
        told = [self._uses.get(replica, deque()) for replica in replicas]
        known = [
            (use.num_gpus, use.gpu_memory_bytes)
            for uses in told
            for use in uses
            if use.num_gpus is not None and use.gpu_memory_bytes is not None
        ]
        if self._gpu_bytes is None or not told or min(map(len, told)) < SAMPLES or len(known) < sum(map(len, told)):
            return None
        return mean(num_gpus for num_gpus, _ in known), max(held for _, held in known) / self._gpu_bytes

    def close(self) -> None:
        """Let go of the log."""
        self._log.close()
