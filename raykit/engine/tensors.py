"""Tensors and arrays that travelled as their numbers."""

from __future__ import annotations

from typing import Any


def memmap_of(array: Any) -> Any:
    """Return an array of the type that it had; its file did not travel."""
    import numpy as np

    return array.view(np.memmap)


def tensor_of(numbers: Any, dtype: str, shape: tuple[int, ...], stride: tuple[int, ...] | None, requires_grad: bool) -> Any:
    """Return the tensor whose storage is ``numbers``, an array of bytes; it shares their memory.

    Args:
        numbers: the storage, (num_bytes,) uint8.
        dtype: the name of the tensor's type, such as ``float32``.
        shape: the tensor's.
        stride: its strides in elements; None where it is contiguous.
        requires_grad: whether it is a leaf that does.
    """
    import torch

    flat = torch.from_numpy(numbers).view(getattr(torch, dtype))
    tensor = flat.reshape(shape) if stride is None else flat.as_strided(shape, stride)
    return tensor.requires_grad_(requires_grad)
