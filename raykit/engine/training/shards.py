"""Tensors of which a rank holds a part (DTensor, of FSDP and tensor parallel): the part, and the whole laid out again.

Ranks of one place in different replicas hold equal parts, so that between replicas only parts travel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """Give this rank's part of a tensor, sharing its memory; a plain tensor is its own part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def with_local(like: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """Give a tensor laid out as ``like`` whose part of this rank is ``part``."""
    if not isinstance(like, DTensor):
        return part
    part = part.to(like.device)
    return DTensor.from_local(part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride())


def parts_of(state: Any) -> Any:
    """Give a state of nested dicts and lists with this rank's parts in place of whole tensors."""
    return _mapped(state, local_of)


def lay_out_model(state: dict[str, Any], model: torch.nn.Module) -> dict[str, Any]:
    """Give a model's state, of whole tensors or of this rank's parts, laid out as the model is."""
    mine = model.state_dict()
    return {name: _laid_out(value, mine.get(name)) for name, value in state.items()}


def lay_out_optimizer(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Give an optimizer's state laid out as its parameters are; numbers beside them (a step count) stay as they are."""
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    laid_out = {
        index: {name: _laid_out(value, parameters[index]) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    return {**state, "state": laid_out}


def _laid_out(value: Any, like: Any) -> Any:
    if not isinstance(value, torch.Tensor) or not isinstance(like, DTensor):
        return value
    if value.shape == like.shape:
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return with_local(like, value) if value.shape == like.to_local().shape else value


def _mapped(state: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(state, dict):
        return {name: _mapped(value, change) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_mapped(value, change) for value in state)
    return change(state) if isinstance(state, torch.Tensor) else state
