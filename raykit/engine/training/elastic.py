"""``rk.elastic``: where a user's code meets the run that it is part of."""

from __future__ import annotations

from typing import Any

import torch

from raykit.engine.training.job import Job, Surroundings
from raykit.engine.training.state import Stateful
from raykit.errors import InputError


class _Here:
    """A worker's process holds one run, and one job of it."""

    surroundings: Surroundings | None = None
    job: Job | None = None


def surround(surroundings: Surroundings) -> None:
    """Say once, in a worker's process, what its job is part of."""
    _Here.surroundings = surroundings


def job_here() -> Job | None:
    """Give this process's job, None before the user's code has made it."""
    return _Here.job


def elastic(*, model: torch.nn.Module, optimizer: Any, scheduler: Any = None, scaler: Any = None) -> Job:
    """Put a model and its optimizer under the care of the run: what they hold survives the loss of workers.

    Args:
        model: on ``rk.device()``; the first rank's parameters and buffers are given to all.
        optimizer: one or several; ``step`` is called by ``job.commit`` and refused by hand.
        scheduler: one or several, stepped once a commit on each rank; anything that has ``step``, ``state_dict`` and
            ``load_state_dict``, an average of the weights, say.
        scaler: a ``torch.amp.GradScaler``; scale the loss with it as usual, ``commit`` does the rest.

    Raises:
        InputError: called outside of a training run, or a second time in one; an optimizer has what the model has not.
    """
    if _Here.surroundings is None:
        raise InputError(
            "rk.elastic was called outside of a training run.", "Use it in a %%ray train cell, or in a function given to rk.train."
        )
    if _Here.job is not None:
        raise InputError(
            "rk.elastic was called twice in one run.", "Give it all that is trained at once; several optimizers are fine."
        )
    cared_for = Stateful(model=model, optimizers=_several(optimizer), schedulers=_several(scheduler), scaler=scaler)
    _Here.job = Job(_Here.surroundings, cared_for)
    return _Here.job


def _several(given: Any) -> list[Any]:
    if given is None:
        return []
    return list(given) if isinstance(given, list | tuple) else [given]
