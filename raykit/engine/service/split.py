"""The answers of a batch, as the user's code returns them, apart."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from raykit.engine.pipeline.blocks import is_tensor


def split(made: Any, count: int) -> list[Any]:
    """Return the answer to each request of a batch, with every value as the user's code made it.

    Args:
        made: a dict of columns (arrays, tensors, lists; first axis the requests), a list with an answer each, an array or a
            tensor whose first axis are the answers, or a table of pandas or Arrow.
        count: the number of requests.

    Raises:
        TypeError: it is none of them, or a column is one value.
        ValueError: it, or a column, has not ``count`` values, or two columns have the same name.
    """
    if isinstance(made, dict):
        columns = {name: _values(f"the column {name!r}", column, count) for name, column in made.items()}
        if not columns:
            raise ValueError(f"an empty dict was returned for {count} requests: return a column with a value for each request")
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if hasattr(made, "to_dict") and hasattr(made, "columns"):
        _check_names(made.columns)
        return _counted("the table", made.to_dict("records"), count)
    if hasattr(made, "to_pylist") and hasattr(made, "column_names"):
        _check_names(made.column_names)
        return _counted("the table", made.to_pylist(), count)
    return _values("the result", made, count)


def _values(what: str, column: Any, count: int) -> list[Any]:
    """Return the values of a column."""
    if hasattr(column, "to_pylist"):  # Arrow's values are objects of its own
        return _counted(what, column.to_pylist(), count)
    if is_tensor(column):
        column = column.detach().cpu()
    is_one = isinstance(column, dict | str | bytes | bytearray | set | frozenset) or getattr(column, "ndim", 1) == 0
    if is_one or not isinstance(column, Collection):
        raise TypeError(
            f"{what} of a batch is one {type(column).__name__}: return an array or a list with a value for each of {count} requests"
        )
    return _counted(what, list(column), count)


def _counted(what: str, values: list[Any], count: int) -> list[Any]:
    if len(values) != count:
        raise ValueError(f"{what} has {len(values)} values for {count} requests")
    return values


def _check_names(names: Any) -> None:
    names = list(names)
    if len(set(names)) < len(names):
        raise ValueError(f"two columns of a table have the same name: {names}")
