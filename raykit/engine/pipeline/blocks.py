"""The forms in which rows are at hand: a list of dicts, a dict of arrays (first axis the rows), or a block of Ray Data.

Between stages rows stay as the user's code made them. Ray Data's blocks come from its readers, and are made where rows are
written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from raykit.engine.pipeline.columns import column_from, numpy_from, objects, scalar, stacked, values_from

Rows = list[dict[str, Any]]
Batch = dict[str, Any]
Part = tuple[Any, int, int]
"""A block, and the rows of it that are meant: from, and up to."""


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
            rows += [{name: scalar(column[at]) for name, column in block.items()} for at in range(start, stop)]
        else:
            table = _table(block).slice(start, stop - start)
            columns = [values_from(field, column) for field, column in zip(table.schema, table.columns, strict=True)]
            rows += [dict(zip(table.column_names, values, strict=True)) for values in zip(*columns, strict=True)]
    return rows


def batch_of(parts: Sequence[Part]) -> Batch:
    """Give the rows as a dict of arrays, as Ray Data's batches in numpy format."""
    columns = [_columns_of(*part) for part in parts]
    if len(columns) == 1:
        return columns[0]
    names = dict.fromkeys(name for each in columns for name in each)
    sizes = [num_rows(each) for each in columns]
    return {
        name: _joined([each.get(name, objects([None] * size)) for each, size in zip(columns, sizes, strict=True)]) for name in names
    }


def slice_of(batch: Batch, start: int, stop: int) -> Batch:
    """Give some rows of a batch."""
    return {name: column[start:stop] for name, column in batch.items()}


def table_of(block: Any) -> Any:
    """Return a ``pyarrow.Table`` from which each value can be read back as it is: see :mod:`raykit.engine.pipeline.columns`.

    Raises:
        TypeError: a row has no columns, or a column's name is no text.
        Exception: whatever a value raises that cannot be pickled.
    """
    import pyarrow as pa

    if isinstance(block, list):
        for row in block:
            check_names(row)
        names = dict.fromkeys(name for row in block for name in row)
        columns = {name: [as_array(row.get(name)) for row in block] for name in names}
    elif isinstance(block, dict):
        if num_rows(block):
            check_names(block)
        columns = block
    else:
        return _table(block)
    made = [column_from(name, values) for name, values in columns.items()]
    return pa.Table.from_arrays([array for _, array in made], schema=pa.schema([field for field, _ in made]))


def check_names(columns: Iterable[Any]) -> None:
    """Check what the columns of a row, a batch or a table are called.

    Raises:
        TypeError: one is no text, two have the same name, or there is none.
    """
    names = list(columns)
    if (wrong := next((name for name in names if not isinstance(name, str)), None)) is not None:
        raise TypeError(f"a column is called {wrong!r}, and names of columns are texts")
    if not names:
        raise TypeError("a row has no columns: return None to leave it out")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise TypeError(f"two columns are called {twice!r}: give each a name of its own")


def joined(tables: Sequence[Any]) -> Any:
    """Return one ``pyarrow.Table`` of several; a column whose types differ is rebuilt from its values, so that no value changes."""
    import pyarrow as pa

    fields: dict[str, list[Any]] = {}
    for table in tables:
        for field in table.schema:
            fields.setdefault(field.name, []).append(field)
    columns = [_joined_column(name, of_name, tables) for name, of_name in fields.items()]
    return pa.Table.from_arrays([column for _, column in columns], schema=pa.schema([field for field, _ in columns]))


def _joined_column(name: str, fields: Sequence[Any], tables: Sequence[Any]) -> tuple[Any, Any]:
    import pyarrow as pa

    known = [field for field in fields if not pa.types.is_null(field.type)] or fields[:1]
    if all(field.equals(known[0], check_metadata=True) for field in known):
        kind = known[0].type
        chunks: list[Any] = []
        for table in tables:
            column = table.column(name) if name in table.column_names else None
            is_empty = column is None or (pa.types.is_null(column.type) and not pa.types.is_null(kind))
            chunks += [pa.nulls(table.num_rows, kind)] if column is None or is_empty else column.chunks
        return known[0], pa.chunked_array(chunks, type=kind)
    values: list[Any] = []
    for table in tables:
        there = name in table.column_names
        values += values_from(table.schema.field(name), table.column(name)) if there else [None] * table.num_rows
    return column_from(name, values)


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


def as_array(value: Any) -> Any:
    """Return a tensor of torch as an array, and any other value as it is."""
    return array_of(value) if is_tensor(value) else value


def _columns_of(block: Any, start: int, stop: int) -> Batch:
    if isinstance(block, dict):
        return slice_of(block, start, stop)
    if isinstance(block, list):
        rows = block[start:stop]
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: stacked([as_array(row.get(name)) for row in rows]) for name in names}
    table = _table(block).slice(start, stop - start)
    return {field.name: numpy_from(field, column) for field, column in zip(table.schema, table.columns, strict=True)}


def _joined(columns: list[Any]) -> Any:
    arrays = [np.asarray(column) for column in columns]
    if len({(array.dtype, array.shape[1:]) for array in arrays}) == 1:
        return np.concatenate(arrays)
    return stacked([value for array in arrays for value in array])


def _table(block: Any) -> Any:
    """Return a block of Ray Data as a ``pyarrow.Table``.

    Raises:
        TypeError: two of its columns have the same name.
    """
    table = _accessor(block).to_arrow()
    if table.num_columns:
        check_names(table.column_names)
    return table


def _accessor(block: Any) -> Any:
    return _accessor_class().for_block(block)


def _accessor_class() -> Any:
    from ray.data.block import BlockAccessor

    return BlockAccessor


def as_batch(made: Any) -> Batch:
    """Return the result of a batch stage, a dict of columns, a table or a list of rows, as a dict of arrays of one length.

    Raises:
        TypeError: it is none of them, a column is one value, or two columns have the same name.
        ValueError: its columns are of unlike lengths.
    """
    if hasattr(made, "to_dict") and hasattr(made, "columns"):
        if len(made.columns):
            check_names(made.columns)
        return {name: made[name].to_numpy() for name in made.columns}
    is_table = hasattr(made, "column_names") and hasattr(made, "num_rows")  # of Arrow
    if is_table or (isinstance(made, list) and made and all(isinstance(each, dict) for each in made)):
        return batch_of([(made, 0, num_rows(made))])
    if not isinstance(made, dict):
        raise TypeError(f"a stage with batch= returns a dict of arrays, not a {type(made).__name__}")
    batch = {name: _column(name, column) for name, column in made.items()}
    lengths = {name: len(column) for name, column in batch.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the columns of a batch have unlike lengths: {lengths}")
    return batch


def _column(name: str, column: Any) -> Any:
    array = as_array(column)
    if isinstance(array, np.ma.MaskedArray):
        array = array.tolist()  # None where a value is masked
    if isinstance(array, dict | str | bytes) or not isinstance(array, Iterable) or getattr(array, "ndim", 1) == 0:
        raise TypeError(f"the column {name} of a batch is one {type(column).__name__}, not an array or a list with a value a row")
    if isinstance(array, np.ndarray):
        return array
    values = list(array)
    return stacked(values) if values else np.empty(0)


def bytes_of(value: Any) -> int:
    """Estimate the bytes of a row's or a block's values."""
    if isinstance(value, dict):
        return sum(bytes_of(each) for each in value.values())
    if isinstance(value, list | tuple):
        return sum(bytes_of(each) for each in value)
    if isinstance(value, np.ndarray) and value.dtype == object:
        return sum(bytes_of(each) for each in value.flat)
    return int(getattr(value, "nbytes", 0)) or (len(value) if isinstance(value, bytes | str) else 64)
