"""A model's buffers (running statistics of a norm, say) over a step: one value on all ranks after it, none of a broken one."""

from __future__ import annotations

import torch
from torch.distributed.tensor import DTensor

from raykit.engine.training.collective import Group


class Buffers:
    """After a commit every rank has the mean of what the ranks' forwards made of the floating-point buffers.

    DDP gives all ranks what rank 0 has; here a rank that is lost must not be one that decides.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._names, self._all = [name for name, _ in model.named_buffers()], list(model.buffers())
        self._averaged = [each for each in self._all if each.is_floating_point() and not isinstance(each, DTensor)]
        self._before: list[torch.Tensor] = []
        self._means: list[torch.Tensor] = []

    def begin(self) -> None:
        """Remember the buffers as the step found them."""
        self._before = [each.clone() for each in self._all]

    def as_committed(self) -> dict[str, torch.Tensor]:
        """Give the buffers as a step in progress has found them, by name; none where there is no step."""
        return dict(zip(self._names, self._before, strict=False))

    def reduce(self, group: Group, weight: float, total_weight: float) -> None:
        """Take the weighted mean over the ranks; blocking. ``keep`` puts it in place.

        Raises:
            BrokenWorldError: a peer is gone.
        """
        self._means = [each.detach() * (weight / total_weight) for each in self._averaged]
        for work in [group.reduce(mean) for mean in self._means]:
            group.wait(work)

    def keep(self) -> None:
        """The step is committed."""
        with torch.no_grad():
            for buffer, mean in zip(self._averaged, self._means, strict=True):
                buffer.copy_(mean)
        self._before = []

    def restore(self) -> None:
        """The step is broken: take back what its forward changed; nothing where there is no step."""
        with torch.no_grad():
            for buffer, before in zip(self._all, self._before, strict=False):
                buffer.copy_(before)
        self._before = []
