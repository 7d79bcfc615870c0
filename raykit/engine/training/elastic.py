"""``rk.elastic``: where a user's code meets the run that it is part of."""

from __future__ import annotations

from typing import Any, overload

import torch

from raykit.engine.training.job import Job
from raykit.engine.training.loop_state import LoopState, Surroundings
from raykit.engine.training.state import Stateful
from raykit.errors import InputError


class _Here:
    """A worker's process holds one run, and one loop of it."""

    surroundings: Surroundings | None = None
    loop: LoopState | None = None


def surround(surroundings: Surroundings) -> None:
    """Note, in a worker's process, what its job is part of."""
    _Here.surroundings = surroundings


def loop_here() -> LoopState | None:
    """Return the state of this process's loop, None before the user's code has made it."""
    return _Here.loop


@overload
def elastic(trainer: Any) -> None: ...
@overload
def elastic(
    *, model: torch.nn.Module, optimizer: Any, scheduler: Any = None, scaler: Any = None, extra_state: Any = None
) -> Job: ...
def elastic(
    trainer: Any = None,
    *,
    model: torch.nn.Module | None = None,
    optimizer: Any = None,
    scheduler: Any = None,
    scaler: Any = None,
    extra_state: Any = None,
) -> Job | None:
    """Put a model and all that changes with it under the care of the run: what they hold survives the loss of workers.

    From here on ``loss.backward()`` leaves the mean gradients of all ranks, and ``optimizer.step()`` is a commit: it counts on
    all ranks or on none, and so do the calls of schedulers, scaler and ``extra_state``.

    Args:
        trainer: instead of all others: a ``Trainer`` of ``transformers`` or Lightning, before its ``train`` or ``fit`` is
            called. The size of its batches is that of the global batch; returns None.
        model: on ``rk.device()``; the first rank's parameters and buffers are given to all. Floating-point buffers that a
            forward pass writes to become the mean over the ranks, weighted by rows; others stay as they are.
        optimizer: one or several.
        scheduler: one or several learning-rate schedulers. ``job.commit`` steps them once a commit on each rank; a loop that
            calls ``optimizer.step()`` steps them itself. Also anything else that has ``step``, ``state_dict`` and
            ``load_state_dict``.
        scaler: a ``torch.amp.GradScaler``; scale the loss with it as usual.
        extra_state: one or several further objects that have ``state_dict`` and ``load_state_dict``: an average of the weights
            (``AveragedModel``), say. A rank that joins is given their state, a checkpoint holds it; their ``step``, ``update``
            and ``update_parameters`` change nothing after a step that was dropped.

    Raises:
        InputError: called outside of a training run, or a second time in one; an optimizer has what the model has not.
    """
    if _Here.surroundings is None:
        raise InputError(
            "rk.elastic was called outside of a training run.", "Use it in a %%ray train cell, or in a function given to rk.train."
        )
    if _Here.loop is not None:
        raise InputError(
            "rk.elastic was called twice in one run.", "Give it all that is trained at once; several optimizers are fine."
        )
    if trainer is not None:
        if model is not None or optimizer is not None:
            raise InputError("rk.elastic was given a Trainer and a model or an optimizer, which are the Trainer's.", "Give one.")
        _elastic_trainer(trainer, _Here.surroundings)
        return None
    if model is None or optimizer is None:
        raise InputError("rk.elastic was given no model, or no optimizer.", "Give both: rk.elastic(model=..., optimizer=...).")
    cared_for = Stateful(
        model=model,
        optimizers=_several(optimizer),
        schedulers=_several(scheduler),
        scaler=scaler,
        extras=_several(extra_state),
    )
    _Here.loop = LoopState(_Here.surroundings, cared_for)
    return Job(_Here.loop)


def _elastic_trainer(trainer: Any, surroundings: Surroundings) -> None:
    packages = {kind.__module__.partition(".")[0] for kind in type(trainer).__mro__}
    if "transformers" in packages:
        from raykit.engine.training.huggingface import elastic_trainer
    elif packages & {"pytorch_lightning", "lightning"}:
        from raykit.engine.training.lightning import elastic_trainer
    else:
        raise InputError(
            f"A {type(trainer).__name__} is no Trainer that raykit knows.",
            "Give one of transformers or Lightning, or model= and optimizer=.",
        )
    elastic_trainer(trainer, surroundings, _found)


def _found(loop: LoopState) -> None:
    """Note the state of the loop that a Trainer has."""
    if _Here.loop is not None:
        raise InputError("A second training begins in one run.", "Give each a run of its own.")
    _Here.loop = loop


def _several(given: Any) -> list[Any]:
    if given is None:
        return []
    return list(given) if isinstance(given, list | tuple) else [given]
