"""What is wanted of a service."""

from __future__ import annotations

from dataclasses import dataclass, field

from raykit.errors import OptionError
from raykit.spec.options import check_range
from raykit.spec.pipeline import StageSpec
from raykit.spec.priority import Priority, check_priority

TOKEN_FILE = "service.token"  # noqa: S105  (its name; in the run's folder)
PORT_FILE = "service.port"  # of its ingress, on the head's machine
MAX_BODY_BYTES = 64 * 2**20  # of a request


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSpec:
    """A stage behind HTTP, with ``replicas`` from least to most as its requests need; ``slo_s`` is how soon they are answered.

    ``num_warm`` replicas more are built ahead, without a slot, as far as the most allows; None is one where the number is not
    fixed, and none where it is.
    """

    name: str = "service"
    stage: StageSpec = field(default_factory=lambda: StageSpec(name="service"))
    replicas: tuple[int, int] = (1, 1)
    slo_s: float = 1.0
    num_warm: int | None = None
    priority: Priority = "high"

    def __post_init__(self) -> None:
        check_priority(self.priority)
        check_range("--replicas", *self.replicas, least=0)
        if self.replicas[1] < 1:
            raise OptionError("--replicas is 0.", "Give at least one as the most, as 0:4.")
        unknown = {"memory": self.stage.memory_bytes, "timeout_s": self.stage.timeout_s, "max_cost": self.stage.max_cost}
        if given := [name for name, value in unknown.items() if value]:
            raise OptionError(
                f"The stage {self.stage.name} has {given[0]}, which services do not know.", "Leave it out of @rk.stage."
            )
        if self.num_warm is not None and self.num_warm < 0:
            raise OptionError(f"--warm is {self.num_warm}.", "Give how many replicas are built ahead, 0 for none.")
        if self.slo_s <= 0:
            raise OptionError(f"--slo is {self.slo_s:g} s.", "Give a time above 0, as 200ms or 2s.")

    @property
    def demand(self) -> tuple[tuple[float, float], ...]:
        """The slots without which it cannot answer: (CPUs, GPUs) of each of its least replicas, of one at least."""
        return ((self.stage.num_cpus, self.stage.num_gpus),) * max(1, self.replicas[0])
