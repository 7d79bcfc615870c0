"""A person's objects as a pickle, with the content of large arrays and tensors out of band (pickle protocol 5), uncopied."""

from __future__ import annotations

import io
import pickle
import sys
from typing import Any

import cloudpickle
import psutil

from raykit.engine.tensors import memmap_of, tensor_of
from raykit.wire.buffers import LARGE_BYTES


class TooLargeError(Exception):
    """The pickle outgrew the memory that it may take."""


def room_bytes() -> int:
    """Return the memory of this machine that a pickle may take."""
    return int(psutil.virtual_memory().available)


def pickled(value: Any, room: int) -> tuple[bytes, tuple[memoryview, ...]]:
    """Return the pickle, and the large buffers that it refers to, in their order: the objects' own memory, as bytes.

    Raises:
        TooLargeError: it takes more than ``room`` bytes beside its large buffers.
    """
    buffers: list[memoryview] = []

    def is_small(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes < LARGE_BYTES:
            return True
        buffers.append(view)
        return False

    file = _Limited(room)
    _Pickler(file, protocol=pickle.HIGHEST_PROTOCOL, buffer_callback=is_small).dump(value)
    return file.getvalue(), tuple(buffers)


class _Limited(io.BytesIO):
    """A buffer that ends a pickling early instead of filling the kernel's memory."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._left = limit

    def write(self, data: Any) -> int:
        self._left -= memoryview(data).nbytes
        if self._left < 0:
            raise TooLargeError
        return super().write(data)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Takes of a tensor or an array its own numbers only, where they are: torch's pickles have the whole storage, three copies."""

    def reducer_override(self, obj: Any) -> Any:
        torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
        if torch is not None and type(obj) is torch.Tensor and (reduced := _reduced(torch, obj, self.proto)) is not None:
            return reduced
        if numpy is not None and type(obj) is numpy.ndarray and obj.nbytes >= LARGE_BYTES and not obj.dtype.hasobject:
            # numpy gives out of band what is contiguous, and puts the rest into the pickle.
            return (obj if obj.flags.forc else numpy.ascontiguousarray(obj)).__reduce_ex__(self.proto)
        if numpy is not None and type(obj) is numpy.memmap and obj.nbytes >= LARGE_BYTES and not obj.dtype.hasobject:
            return memmap_of, (numpy.asarray(obj),)
        return super().reducer_override(obj)


def _reduced(torch: Any, tensor: Any, protocol: int) -> Any:
    """Return how a tensor is pickled that is large, or part of a larger storage; None where torch's own way is to be taken."""
    if str(tensor.layout) != "torch.strided" or tensor.is_quantized or (tensor.requires_grad and not tensor.is_leaf):
        return None
    num_bytes, storage_bytes = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    is_plain = tensor.device.type == "cpu" and not (vars(tensor) or tensor.is_conj() or tensor.is_neg())
    if is_plain and storage_bytes >= num_bytes >= LARGE_BYTES:
        return _out_of_band(torch, tensor, has_whole_storage=storage_bytes == num_bytes)
    if storage_bytes <= num_bytes:
        return None
    if is_plain and not tensor.requires_grad and tensor.dtype not in (torch.bfloat16, torch.complex32):
        return torch.from_numpy, (tensor.numpy(),)  # a tenth of the time of torch's own way
    return tensor.detach().clone().requires_grad_(tensor.requires_grad).__reduce_ex__(protocol)


def _out_of_band(torch: Any, tensor: Any, *, has_whole_storage: bool) -> Any:
    stride = None
    flat = tensor.detach()
    if has_whole_storage and not tensor.is_contiguous():
        stride, flat = tensor.stride(), flat.as_strided((tensor.numel(),), (1,), 0)
    numbers = flat.contiguous().reshape(-1).view(torch.uint8).numpy()
    return tensor_of, (numbers, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), stride, tensor.requires_grad)
