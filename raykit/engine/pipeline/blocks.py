"""The forms in which rows are at hand: a list of dicts, a dict of arrays (first axis the rows), or a block of Ray Data.

Between stages rows stay as the user's code made them. Ray Data's blocks come from its readers, and are made where rows are
written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

Rows = list[dict[str, Any]]
Batch = dict[str, Any]
Part = tuple[Any, int, int]
"""A block, and the rows of it that are meant: from, and up to."""


class UnlikeTablesError(Exception):
    """Tables have a column of types that do not go together."""


def num_rows(block: Any) -> int:
    """Count a block's rows."""
    if isinstance(block, dict):
        return len(next(iter(block.values()))) if block else 0
    return len(block) if isinstance(block, list) else int(_accessor(block).num_rows())


def rows_of(parts: Iterable[Part]) -> Rows:
    """Give the rows as dicts, with Python's own numbers and strings."""
    rows: Rows = []
    for block, start, stop in parts:
        if isinstance(block, list):
            rows += block[start:stop]
        elif isinstance(block, dict):
            rows += [{name: _item(column[at]) for name, column in block.items()} for at in range(start, stop)]
        else:
            rows += [dict(row) for row in _accessor(_accessor(block).slice(start, stop)).iter_rows(public_row_format=True)]
    return rows


def batch_of(parts: Sequence[Part]) -> Batch:
    """Give the rows as a dict of arrays, as Ray Data's batches in numpy format."""
    columns = [_columns_of(*part) for part in parts]
    if len(columns) == 1:
        return columns[0]
    names = dict.fromkeys(name for each in columns for name in each)
    return {name: _joined([each[name] for each in columns]) for name in names}


def slice_of(batch: Batch, start: int, stop: int) -> Batch:
    """Give some rows of a batch."""
    return {name: column[start:stop] for name, column in batch.items()}


def table_of(block: Any) -> Any:
    """Give a ``pyarrow.Table``; tensors become Ray Data's tensor columns, what Arrow does not know is pickled.

    Raises:
        TypeError: a row has no columns, or a column's name is no text.
    """
    from ray.data._internal.delegating_block_builder import DelegatingBlockBuilder

    if isinstance(block, list):
        for row in block:
            _check_names(row)
        builder = DelegatingBlockBuilder()
        for row in block:
            builder.add({name: array_of(value) if is_tensor(value) else value for name, value in row.items()})
        block = builder.build()
    elif isinstance(block, dict):
        if num_rows(block):
            _check_names(block)
        block = _accessor_class().batch_to_block(block)
    return _accessor(block).to_arrow()


def _check_names(columns: Iterable[Any]) -> None:
    if (wrong := next((name for name in columns if not isinstance(name, str)), None)) is not None:
        raise TypeError(f"a column is called {wrong!r}, and names of columns are texts")
    if not columns:
        raise TypeError("a row has no columns: return None to leave it out")


def joined(tables: Sequence[Any]) -> Any:
    """Give one ``pyarrow.Table``; tensors of unlike shapes become one column, and so do objects and what Arrow knows.

    Raises:
        UnlikeTablesError: they do not go together.
    """
    from ray.data._internal.arrow_ops.transform_pyarrow import concat
    from ray.data._internal.tensor_extensions.arrow import ArrowConversionError

    axes = {(field.name, len(field.type.shape)) for table in tables for field in table.schema if hasattr(field.type, "shape")}
    if len(axes) > len(dict(axes)):  # Ray Data would give a tensor of fewer axes some of length 1
        raise UnlikeTablesError
    try:
        return concat(list(tables), promote_types=True, preserve_order=True)
    except (ArrowConversionError, TypeError, ValueError) as exc:
        raise UnlikeTablesError from exc


def stacked(values: list[Any]) -> np.ndarray:
    """Give values as an array whose first axis they are; those of unlike shapes, or numbers and texts, as one of objects."""
    values = [array_of(value) if is_tensor(value) else value for value in values]
    if all(isinstance(value, np.ndarray | np.generic | int | float | complex) and not isinstance(value, str) for value in values):
        arrays = [np.asarray(value) for value in values]
        if len({array.dtype.kind in "SU" for array in arrays}) == 1:  # numpy would make texts of the numbers beside them
            with suppress(ValueError, TypeError):  # of unlike shapes
                return np.stack(arrays)
    array = np.empty(len(values), dtype=object)
    for place, value in enumerate(values):  # a slice would be taken apart where values are lists
        array[place] = value
    return array


def is_tensor(value: Any) -> bool:
    """Say whether a value is one of torch's, without importing it."""
    return hasattr(value, "detach") and hasattr(value, "cpu")


def array_of(tensor: Any) -> np.ndarray:
    """Give a tensor of torch as an array, from whatever device; what numpy has no type for (bfloat16) becomes float32."""
    here = tensor.detach().cpu()
    try:
        array: np.ndarray = here.numpy()
    except TypeError:
        array = here.float().numpy()
    return array


def _columns_of(block: Any, start: int, stop: int) -> Batch:
    if isinstance(block, dict):
        return slice_of(block, start, stop)
    if isinstance(block, list):
        rows = block[start:stop]
        return {name: stacked([row.get(name) for row in rows]) for name in dict.fromkeys(name for row in rows for name in row)}
    columns: Batch = _accessor(_accessor(block).slice(start, stop)).to_numpy()
    return columns


def _joined(columns: list[Any]) -> Any:
    arrays = [np.asarray(column) for column in columns]
    if len({(array.dtype, array.shape[1:]) for array in arrays}) == 1:
        return np.concatenate(arrays)
    return stacked([value for array in arrays for value in array])


def _item(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _accessor(block: Any) -> Any:
    return _accessor_class().for_block(block)


def _accessor_class() -> Any:
    from ray.data.block import BlockAccessor

    return BlockAccessor


def bytes_of(value: Any) -> int:
    """Estimate the bytes of a row's or a block's values."""
    if isinstance(value, dict):
        return sum(bytes_of(each) for each in value.values())
    if isinstance(value, list | tuple):
        return sum(bytes_of(each) for each in value)
    if isinstance(value, np.ndarray) and value.dtype == object:
        return sum(bytes_of(each) for each in value.flat)
    return int(getattr(value, "nbytes", 0)) or (len(value) if isinstance(value, bytes | str) else 64)
