"""A model's buffers (running statistics of a norm, say) over a step: one value on all ranks after it, none of a broken one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.distributed.tensor import DTensor

from raykit.engine.training.collective import Group


@dataclass(slots=True, eq=False)
class _Buffer:
    """A place for a buffer in a module, and the buffer as the last commit left it."""

    module: torch.nn.Module
    key: str
    name: str
    committed: torch.Tensor | None = None
    at_commit: tuple[int, int] = (0, 0)
    at_reduction: tuple[int, int] = (0, 0)

    @property
    def now(self) -> torch.Tensor:
        buffer = self.module._buffers[self.key]  # noqa: SLF001  (a module that made a new one has it nowhere else)
        assert buffer is not None
        return buffer

    @property
    def version(self) -> tuple[int, int]:
        """A value that changes whenever the buffer is written to, or is another tensor."""
        return id(self.now), self.now._version  # noqa: SLF001


class Buffers:
    """Makes what the ranks' forward passes did to the buffers one value on all ranks.

    Only what was written to is touched, so a mask or a table of positions stays what it is, to the bit. Of what was written:

    - Floating-point and complex buffers become the mean over the ranks, weighted by rows. Batch normalization's running mean
      is then what one process would have, and its running variance that of the ranks' shares. DistributedDataParallel takes
      those of rank 0, which saw a part of the batch only, and which may be lost.
    - Integers and booleans (a counter of batches) are those of rank 0, as with DistributedDataParallel.

    A buffer that is no mean of rows, such as a queue of keys, has to be made equal by the code that fills it.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._modules: list[torch.nn.Module] = []
        self._buffers: list[_Buffer] = []
        self._num_found = -1

    def begin(self) -> None:
        """Remember the buffers as they are: as the last commit left them."""
        self._find()
        for each in self._buffers:
            if each.committed is None or each.at_commit != each.version:
                each.committed, each.at_commit = each.now.detach().clone(), each.version
            each.at_reduction = each.version

    def as_committed(self) -> dict[str, torch.Tensor]:
        """Return the buffers as the last commit left them, by name; empty before the first step."""
        return {each.name: each.committed for each in self._buffers if each.committed is not None}

    @property
    def signature(self) -> int:
        """A number that tells which buffers were written to since the last reduction: equal on ranks on which it was the same."""
        return hash(tuple(place for place, each in enumerate(self._buffers) if each.at_reduction != each.version)) % 2**20

    def reduce(self, group: Group, weight: float, total_weight: float, *, is_same_everywhere: bool) -> None:
        """Make the buffers that were written to equal on all ranks; blocking.

        Args:
            group: of all ranks.
            weight: rows that this rank's forward passes count for.
            total_weight: of all ranks.
            is_same_everywhere: all ranks wrote to the same buffers; otherwise they agree on those that any has written to.

        Raises:
            BrokenWorldError: a peer is gone.
        """
        written = [each for each in self._buffers if each.at_reduction != each.version]
        if not is_same_everywhere:
            marks = torch.tensor([float(each in written) for each in self._buffers])
            group.wait(group.reduce(marks))
            written = [each for each, mark in zip(self._buffers, marks.tolist(), strict=True) if mark]
        written = [each for each in written if not isinstance(each.now, DTensor)]
        if not written:
            return
        # In double precision, so that a mean of equal numbers is that number again.
        flat = torch.cat([_contribution(each.now, group, weight) for each in written])
        group.wait(group.reduce(flat))
        with torch.no_grad():
            for each, part in zip(written, flat.split([_numbers_of(each.now).numel() for each in written]), strict=True):
                numbers = _numbers_of(each.now)
                mean = part / total_weight if numbers.is_floating_point() else part
                numbers.copy_(mean.view(numbers.shape))
        for each in self._buffers:
            each.at_reduction = each.version

    def restore(self) -> None:
        """Put the buffers back as the last commit left them."""
        for each in self._buffers:
            if each.committed is None or each.at_commit == each.version:
                continue
            with torch.no_grad():
                if each.now.shape == each.committed.shape and each.now.dtype == each.committed.dtype:
                    each.now.copy_(each.committed)
                else:
                    each.module._buffers[each.key] = each.committed.clone()  # noqa: SLF001
            each.at_commit = each.at_reduction = each.version

    def _find(self) -> None:
        """Look for buffers: a module may make one in its first forward pass."""
        if not self._modules:
            self._modules = list(self._model.modules())
        num_found = sum(len(each._buffers) for each in self._modules)  # noqa: SLF001
        if num_found == self._num_found:
            return
        self._num_found, known = num_found, {(id(each.module), each.key): each for each in self._buffers}
        self._buffers = [
            known.get((id(module), key)) or _Buffer(module, key, f"{prefix}.{key}" if prefix else key)
            for prefix, module in self._model.named_modules()
            for key, buffer in module._buffers.items()  # noqa: SLF001
            if buffer is not None
        ]


def _numbers_of(buffer: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(buffer.detach()) if buffer.is_complex() else buffer.detach()


def _contribution(buffer: torch.Tensor, group: Group, weight: float) -> torch.Tensor:
    """Return what this rank adds to the sum over ranks, flat, in double precision."""
    numbers = _numbers_of(buffer).to(device=group.device, dtype=torch.float64).reshape(-1)
    if not buffer.is_floating_point() and not buffer.is_complex():
        return numbers if group.rank == 0 else torch.zeros_like(numbers)
    return numbers * weight if weight else torch.zeros_like(numbers)  # nothing times infinity is no number
