"""The device that a slot stands for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def device() -> torch.device:
    """Give the device of this worker: its GPU where it holds one, else the CPU (also where GPUs are simulated)."""
    import torch

    simulated = os.environ.get("RAYKIT_SIMULATED_GPUS", "0") != "0"
    if not simulated and os.environ.get("CUDA_VISIBLE_DEVICES", "x") != "" and torch.cuda.is_available():
        return torch.device("cuda:0")
    return torch.device("cpu")
