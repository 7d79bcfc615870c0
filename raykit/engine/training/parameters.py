"""Parameters that the loop changes itself between two commits, as sharpness-aware minimization does: a void step takes it back."""

from __future__ import annotations

import torch

from raykit.errors import InputError


class Parameters:
    """The parameters of a model since the last commit.

    A copy of them is kept once the loop is known to write to them; most loops leave that to their optimizers.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._named = list(model.named_parameters())
        self._versions: list[int] = []
        self._copies: list[torch.Tensor] = []
        self._loop_writes = False

    def begin(self) -> None:
        """Remember the parameters as they are: as the last commit left them."""
        self._versions = self._versions_now()
        self._copies = [each.detach().clone() for _, each in self._named] if self._loop_writes else []

    def about_to_step(self) -> None:
        """Look whether the loop has written to them since the last commit: the next void step would have to take that back."""
        self._loop_writes = self._loop_writes or self._versions_now() != self._versions

    def restore(self) -> None:
        """Put them back as the last commit left them.

        Raises:
            InputError: the loop has written to them for the first time, and nothing was copied.
        """
        if self._versions_now() == self._versions:
            return
        if not self._copies:
            raise InputError(
                "A peer was lost in the first step in which the loop itself wrote to the parameters, and they cannot be put back.",
                "Resume the run: it goes on from its newest checkpoint.",
            )
        with torch.no_grad():
            for (_, parameter), copy in zip(self._named, self._copies, strict=True):
                parameter.copy_(copy)
        self._versions = self._versions_now()

    def _versions_now(self) -> list[int]:
        return [each._version for _, each in self._named]  # noqa: SLF001
