"""What hub and hosts need to know of their cluster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

NAMESPACE = "raykit"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSetting:
    """Told once, when the cluster is made; it survives restarts in the actors' own creation arguments.

    ``elsewhere`` is a cluster that people reach through its door only. ``further_node`` are the CPU and GPU slots of a node that may come, where nodes come when runs need them.
    ``idle_s`` to ``price_per_node_h`` are for the guard of a cluster that is paid for, and ``account_folder`` for one on
    Kubernetes.
    """

    name: str
    address: str
    port: int
    token_file: str
    folder: str
    profile: str = "standard"
    simulated_gpus: bool = False
    sample_s: float = 1.0
    elsewhere: bool = False
    further_node: tuple[float, float] | None = None
    idle_s: float | None = None
    idle_gpu_utilization: float | None = None
    budget: float | None = None
    price_per_node_h: float = 0.0
    account_folder: str = ""

    @property
    def log_path(self) -> Path:
        return Path(self.folder) / "log.sqlite"

    def has_real_gpus(self, num_gpus: float) -> bool:
        """Say whether a slot of so many GPUs is a device: who has used one keeps memory on it for as long as it lives."""
        return num_gpus > 0 and not self.simulated_gpus

    def run_folder(self, run: str) -> Path:
        """The folder of a run; ``digits#2`` lies in ``digits-2``."""
        return Path(self.folder) / "runs" / run.replace("#", "-")
