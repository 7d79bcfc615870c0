"""What cluster is wanted."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from raykit.errors import OptionError
from raykit.spec.options import amount, count, memory, option, seconds

SMALL_CPUS = 2
LEAST_OBJECT_STORE_BYTES = 75_000_000  # Ray takes no less
SMALL_OBJECT_STORE_BYTES = 80_000_000
LEAST_SAMPLE_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSpec:
    """A cluster on this machine: its slots, its nodes, and what runs beside it.

    ``None`` leaves the choice to what is found here. ``profile="small"`` is for machines of 2 GB: two CPUs, a small
    object store, and training without a warm spare unless it asks for one.
    """

    name: str = option("NAME", default="local", help="how the cluster is called", read=str)
    num_cpus: float | None = option("--cpus", default=None, help="CPU slots of each node", read=amount, metavar="N")
    num_gpus: float | None = option("--gpus", default=None, help="GPUs of each node", read=amount, metavar="N")
    num_simulated_gpus: int = option(
        "--simulate-gpus", default=0, help="slots that stand for GPUs and are none", read=count, metavar="N"
    )
    num_nodes: int = option("--nodes", default=1, help="Ray nodes, all on this machine", read=count, metavar="N")
    dashboard: bool = option("--dashboard", default=False, help="start Ray's dashboard too (300 MB more)")
    object_store_bytes: int | None = option(
        "--object-store", default=None, help="size of the object store of each node", read=memory, metavar="200M"
    )
    sample_s: float = option(
        "--sample-every", default=1.0, help="how often to look at what runs use, 0 for never", read=seconds, metavar="1s"
    )
    profile: Literal["standard", "small"] = option(
        "--profile", default="standard", help="standard, or small for machines of 2 GB", read=str
    )

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}", self.name):
            raise OptionError(f"{self.name!r} cannot name a cluster.", "Use up to 40 letters, digits, - and _.")
        if self.num_gpus and self.num_simulated_gpus:
            raise OptionError("--gpus and --simulate-gpus were both given.", "Give one of them: slots are real or simulated.")
        if self.num_nodes < 1:
            raise OptionError(f"--nodes is {self.num_nodes}.", "A cluster has at least one node.")
        if self.profile not in ("standard", "small"):
            raise OptionError(f"--profile is {self.profile!r}.", "There are two: standard and small.")
        if 0 < self.sample_s < LEAST_SAMPLE_S:
            raise OptionError(
                f"--sample-every is {self.sample_s:g} s.", "GPUs tell nothing new that often: give 0.2s or more, or 0."
            )
        if self.object_store_bytes is not None and self.object_store_bytes < LEAST_OBJECT_STORE_BYTES:
            raise OptionError(f"--object-store is {self.object_store_bytes} bytes.", "Ray wants at least 75M.")
