"""What a cell run on a node wants."""

from __future__ import annotations

from dataclasses import dataclass

from raykit.spec.options import amount, names, option
from raykit.spec.priority import Priority, check_priority, priority_option


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """One run of a cell, or of a function, on one node."""

    name: str = option("NAME", default="cell", help="how the run is called", read=str)
    num_cpus: float = option("--cpus", default=1.0, help="CPU slots that it holds", read=amount, metavar="N")
    num_gpus: float = option("--gpus", default=0.0, help="GPUs that it holds, or a fraction of one", read=amount, metavar="N")
    inputs: tuple[str, ...] = option(
        "-i", default=(), help="names of the notebook that travel; all that the cell uses if not given", read=names
    )
    outputs: tuple[str, ...] = option("-o", default=(), help="names that come back into the notebook", read=names)
    priority: Priority = priority_option()  # noqa: RUF009  (it makes a field)

    def __post_init__(self) -> None:
        check_priority(self.priority)

    @property
    def demand(self) -> tuple[tuple[float, float], ...]:
        """The (CPUs, GPUs) of each slot without which the run cannot start."""
        return ((self.num_cpus, self.num_gpus),)
