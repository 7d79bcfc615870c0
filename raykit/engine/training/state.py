"""All of a training loop that has a state: model, optimizers, schedulers, scaler, and where it stands."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import torch

from raykit.engine.training.shards import lay_out_model, lay_out_optimizer, parts_of

State = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stateful:
    """The objects whose state a joiner takes over and a checkpoint keeps."""

    model: torch.nn.Module
    optimizers: list[Any]
    schedulers: list[Any]
    scaler: Any

    def state(self) -> State:
        """Give the state as it is, sharing memory with what it describes."""
        return {
            "model": self.model.state_dict(),
            "optimizers": [each.state_dict() for each in self.optimizers],
            "schedulers": [each.state_dict() for each in self.schedulers],
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }

    def adopt(self, state: State) -> None:
        """Take over a state, of whole tensors or of this rank's parts."""
        self.model.load_state_dict(lay_out_model(state["model"], self.model))
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(lay_out_optimizer(kept, optimizer))
        for scheduler, kept in zip(self.schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(kept)
        if self.scaler is not None and state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])


def to_bytes(state: State) -> bytes:
    """Copy this rank's parts of a state, for a peer of the same place in another replica."""
    buffer = io.BytesIO()
    torch.save(parts_of(state), buffer)
    return buffer.getvalue()


def from_bytes(data: bytes) -> State:
    """Read what a peer's :func:`to_bytes` gave, onto the CPU."""
    state: State = torch.load(io.BytesIO(data), map_location="cpu", weights_only=False)
    return state
