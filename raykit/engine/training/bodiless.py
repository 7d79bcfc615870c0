"""A step as the loop's body has made it ready for the commit, for ranks on which the body did not run."""

from __future__ import annotations

from typing import Any

import torch

from raykit.engine.training.collective import Group
from raykit.engine.training.shards import with_local
from raykit.engine.training.state import Stateful, given


def share(group: Group, cared_for: Stateful, *, ran: bool, with_gradients: bool) -> None:
    """Give ranks without the body what it has set on others: the optimizers' settings, and gradients (clipped, say); blocking.

    Args:
        group: of those that hold the same part of the model.
        cared_for: what is trained; the gradients are those of the step, summed, and on ranks without the body nothing else.
        ran: whether the body ran here.
        with_gradients: it may have changed them.

    Raises:
        BrokenWorldError: a peer is gone.
    """
    root = [ran for (ran,) in group.gather([ran])].index(True)
    made = {"optimizers": [_made(each, cared_for.scaler, with_gradients) for each in cared_for.optimizers]}
    made = given(group, made if group.rank == root else None, root=root)
    if not ran:
        for optimizer, of_optimizer in zip(cared_for.optimizers, made["optimizers"], strict=True):
            _take(optimizer, cared_for.scaler, **of_optimizer)


def _made(optimizer: torch.optim.Optimizer, scaler: Any, with_gradients: bool) -> dict[str, Any]:
    return {
        "settings": [{name: value for name, value in each.items() if name != "params"} for each in optimizer.param_groups],
        "gradients": [each.grad for each in _parameters(optimizer)] if with_gradients else None,
        "is_unscaled": with_gradients and scaler is not None and _is_unscaled(scaler, optimizer),
    }


def _take(
    optimizer: torch.optim.Optimizer,
    scaler: Any,
    *,
    settings: list[dict[str, Any]],
    gradients: list[torch.Tensor | None] | None,
    is_unscaled: bool,
) -> None:
    for group, of_group in zip(optimizer.param_groups, settings, strict=True):
        group.update(of_group)
    if is_unscaled:
        scaler.unscale_(optimizer)  # so the scaler sees here what it saw there, and does not do it again
    for parameter, gradient in zip(_parameters(optimizer), gradients or (), strict=gradients is not None):
        parameter.grad = None if gradient is None else with_local(parameter, gradient)


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [each for group in optimizer.param_groups for each in group["params"]]


def _is_unscaled(scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> bool:
    return bool(scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"])  # noqa: SLF001
