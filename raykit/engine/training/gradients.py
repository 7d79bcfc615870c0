"""The gradients of a model between two commits: what a step began with, and whether the loop has changed them since."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from raykit.engine.training.shards import local_of
from raykit.errors import InputError

NUM_SAMPLED = 32
"""Gradients, and numbers of each, by which ranks compare what their loops have made of them."""


class Gradients:
    """The gradients of all parameters that are, or ever were, trained; the order is the model's."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._names = {name for name, each in model.named_parameters() if each.requires_grad}
        self.look_for_new()
        self._at_begin: list[torch.Tensor | None] = []
        self._loop_zeroes_first = self._was_zeroed = False
        self._is_begun = False
        self._reduced: list[tuple[int, int]] = []
        self._are_reduced = False

    def look_for_new(self) -> None:
        """Look at the model's parameters again: an optimizer was given new ones."""
        model = self._model
        self._every = list(model.named_parameters())
        self._places = [
            (module, key, f"{prefix}.{key}" if prefix else key, parameter)
            for prefix, module in model.named_modules()
            for key, parameter in module._parameters.items()  # noqa: SLF001
            if parameter is not None
        ]
        self.parameters = self._trained()
        embeddings = (torch.nn.Embedding, torch.nn.EmbeddingBag)
        self.sparse = [each.weight for each in model.modules() if isinstance(each, embeddings) and each.sparse]

    @property
    def num_trained(self) -> int:
        """How many parameters are trained now."""
        return sum(each.requires_grad for _, each in self._every)

    def names(self) -> list[str]:
        """Return the names of all that are, or ever were, trained."""
        return [name for name, _ in self._every if name in self._names]

    def include(self, names: list[str]) -> None:
        """Count parameters as trained, since other ranks train them."""
        if not self._names.issuperset(names):
            self._names |= set(names)
            self.parameters = self._trained()

    def unfrozen(self) -> list[torch.nn.Parameter]:
        """Return the parameters that are trained since the step began, and count them as trained from now on."""
        names = [name for name, each in self._every if each.requires_grad and name not in self._names]
        self.include(names)
        return [each for name, each in self._every if name in names]

    def begin(self) -> None:
        """Remember the gradients that the step begins with.

        They are copied, unless the loop is known to zero them before it uses them.

        Raises:
            InputError: the model has another parameter in the place of one that it had.
        """
        for module, key, name, parameter in self._places:
            if module._parameters.get(key) is not parameter:  # noqa: SLF001
                raise InputError(
                    f"The model's parameter {name} was replaced after rk.elastic: nothing would train the new one.",
                    "Replace it before rk.elastic and the optimizer, or write to it: with torch.no_grad(): parameter.copy_(...).",
                )
        self.include([name for name, each in self._every if each.requires_grad])
        self._at_begin = [] if self._loop_zeroes_first else self._copies()
        self._was_zeroed, self._is_begun, self._are_reduced = False, True, False

    def were_zeroed(self) -> None:
        """Note a call of ``optimizer.zero_grad``."""
        self._was_zeroed = True

    def backward_began(self) -> None:
        """Note the step's first backward pass."""
        if self._is_begun:
            self._is_begun, self._loop_zeroes_first = False, self._was_zeroed

    def restore(self) -> None:
        """Put the gradients back as the step began."""
        for place, parameter in enumerate(self.parameters):
            kept = self._at_begin[place] if place < len(self._at_begin) else None
            parameter.grad = None if kept is None else kept.clone()
        self._are_reduced = False

    def kept(self) -> dict[str, torch.Tensor]:
        """Return the gradients that the next step begins with, by name, as far as the loop will add to them."""
        if self._loop_zeroes_first:
            return {}
        return {name: each.grad for name, each in self._every if name in self._names and each.grad is not None}

    def adopt(self, kept: Mapping[str, torch.Tensor]) -> None:
        """Take over the gradients that a step begins with."""
        for name, parameter in self._every:
            if name in self._names:
                parameter.grad = kept[name].to(parameter.device, copy=True) if name in kept else None

    def note_reduced(self) -> None:
        """Remember the gradients as the reduction has left them: equal on all ranks."""
        self._reduced = [_version_of(each.grad) for each in self.parameters]
        self._are_reduced = True

    @property
    def were_touched(self) -> bool:
        """Whether the loop has changed or replaced a gradient since they were reduced."""
        return self._are_reduced and self._reduced != [_version_of(each.grad) for each in self.parameters]

    def check_untouched(self) -> None:
        """Refuse a change of the gradients of a micro-batch.

        Raises:
            InputError: the loop has changed or replaced one, or set it to None.
        """
        if self.were_touched:
            raise InputError(
                "Gradients were changed between backward and commit of a micro-batch: they are a part of the step's only.",
                "Change the whole step's: if job.sync(): clip_grad_norm_(...), and then job.commit(). To leave the rows of a "
                "micro-batch out call job.weight(0) before backward.",
            )
        self._are_reduced = False

    def fingerprint(self) -> torch.Tensor | None:
        """Return a number, as a tensor, that is equal on ranks whose gradients are; None where there are none."""
        given = [local_of(each.grad) for each in self.parameters if each.grad is not None]
        sampled = given[:: max(1, len(given) // NUM_SAMPLED)]
        if not sampled:
            return None
        with torch.no_grad():
            return torch.stack([_sampled(each).abs().sum().double() for each in sampled]).sum()

    def _trained(self) -> list[torch.nn.Parameter]:
        return [each for name, each in self._every if name in self._names]

    def _copies(self) -> list[torch.Tensor | None]:
        grads = [each.grad for each in self.parameters]
        return [] if all(each is None for each in grads) else [None if each is None else each.detach().clone() for each in grads]


def _version_of(gradient: torch.Tensor | None) -> tuple[int, int]:
    """Return what changes whenever a gradient is written to or replaced, and does not keep its memory."""
    return (0, 0) if gradient is None else (id(gradient), gradient._version)  # noqa: SLF001


def _sampled(gradient: torch.Tensor) -> torch.Tensor:
    flat = (gradient.coalesce().values() if gradient.is_sparse else gradient).reshape(-1)
    return flat[:: max(1, flat.numel() // NUM_SAMPLED)]
