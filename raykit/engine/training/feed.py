"""Which rows a step sees: a pure function of (seed, epoch, step), whatever the world was before.

So no change of the world can lose or double a row: a step that is redone is given the same global batch again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from raykit.errors import InputError


@lru_cache(maxsize=2)
def epoch_order(num_rows: int, seed: int, epoch: int) -> np.ndarray[Any, Any]:
    """Give the order of rows in an epoch: a permutation of ``range(num_rows)``, int64."""
    return np.random.default_rng([seed, epoch]).permutation(num_rows)


def steps_per_epoch(num_rows: int, batch_size: int) -> int:
    """Give the number of global batches; the last may be short."""
    return math.ceil(num_rows / batch_size)


def global_batch(num_rows: int, batch_size: int, seed: int, step: int) -> np.ndarray[Any, Any]:
    """Give the indices of the global batch of ``step`` (counted from the loop's first)."""
    epoch, place = divmod(step, steps_per_epoch(num_rows, batch_size))
    return epoch_order(num_rows, seed, epoch)[place * batch_size : (place + 1) * batch_size]


def share(indices: np.ndarray[Any, Any], rank: int, world_size: int) -> np.ndarray[Any, Any]:
    """Give a rank's part of a global batch: sizes differ by one at most, rank 0's is never the smaller."""
    return indices[rank::world_size]


class Rows:
    """Rows by index: a map-style dataset, a list, or a dict or tuple of arrays of one length."""

    def __init__(self, data: Any) -> None:
        self._data = data
        self._columns = _columns_of(data)
        lengths = {len(column) for column in self._columns.values()} if self._columns else {len(data)}
        if len(lengths) != 1 or 0 in lengths:
            raise InputError(
                f"The training set has columns of {sorted(lengths)} rows.", "Give at least one row, and equal lengths."
            )
        self.num_rows = lengths.pop()

    def take(self, indices: np.ndarray[Any, Any]) -> Any:
        """Give the rows as ``default_collate`` makes a batch of them; the first axis is the batch."""
        if self._columns:
            batch = {name: _as_tensor(column[indices]) for name, column in self._columns.items()}
            return batch if isinstance(self._data, Mapping) else tuple(batch.values())
        if hasattr(self._data, "__getitems__"):
            return default_collate(self._data.__getitems__(indices.tolist()))
        return default_collate([self._data[int(index)] for index in indices])


def _columns_of(data: Any) -> dict[Any, Any]:
    if isinstance(data, torch.utils.data.TensorDataset):
        return dict(enumerate(data.tensors))
    if isinstance(data, Mapping):
        return {name: _as_array(column) for name, column in data.items()}
    if isinstance(data, tuple) and all(isinstance(column, np.ndarray | torch.Tensor) for column in data):
        return dict(enumerate(data))
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise InputError(f"A {type(data).__name__} is no training set.", "Give a map-style dataset, a list, or a dict of arrays.")
    return {}


def _as_array(column: Any) -> Any:
    return column if isinstance(column, np.ndarray | torch.Tensor) else np.asarray(column)


def _as_tensor(values: Any) -> Any:
    return torch.from_numpy(values) if isinstance(values, np.ndarray) and values.dtype.kind in "biuf" else values


def to_device(batch: Any, device: torch.device) -> Any:
    """Move the tensors of a batch, however it is nested."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {name: to_device(value, device) for name, value in batch.items()}
    if isinstance(batch, list):
        return [to_device(value, device) for value in batch]
    if isinstance(batch, tuple):
        moved = [to_device(value, device) for value in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else tuple(moved)
    return batch
