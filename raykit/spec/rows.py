"""Which rows a value of the user's has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from raykit.errors import SourceError

ORDER = b"raykit.order"
"""The key of a Parquet part's metadata with the spans of the source whose rows it has, in order: JSON, [[span, rows], ...]."""

NOTE = b"raykit.values"
"""The key of a Parquet column's metadata that says how its values differ from what Arrow gives: they are ..."""
TUPLES = b"tuples"
"""... tuples, where Arrow has lists; or ..."""
ABSENT = b"a null in a dict is a key that is not there"
"""... dicts of which not all have the same keys."""


def rows_in(value: Any) -> Iterator[dict[str, Any]] | None:
    """Return the rows of an iterable or of a table (of pandas, Polars or Arrow); items that are no dicts become ``{"item": item}``.

    None of what has no rows: a dict is one row, and of a text nobody wants the letters.

    Raises:
        SourceError: two columns of a table have the same name.
    """
    value = _records(value)
    if isinstance(value, dict | str | bytes) or not isinstance(value, Iterable):
        return None
    return map(as_row, value)


def as_noted(note: bytes, values: list[Any]) -> list[Any]:
    """Return what the values of a column were before Arrow had them, as its :data:`NOTE` says."""
    if note == TUPLES:
        return [None if value is None else tuple(value) for value in values]
    return [_without_absent(value) for value in values] if note == ABSENT else values


def _without_absent(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_absent(each) for name, each in value.items() if each is not None}
    return [_without_absent(each) for each in value] if isinstance(value, list) else value


def _records(value: Any) -> Any:
    """Return a table as a list of dicts, and anything else as it is."""
    if hasattr(value, "to_pylist"):  # Arrow
        names, records = getattr(getattr(value, "schema", None), "names", []), value.to_pylist
    elif hasattr(value, "to_dicts") and hasattr(value, "columns"):  # Polars
        names, records = value.columns, value.to_dicts
    elif hasattr(value, "to_dict") and hasattr(value, "columns"):  # pandas
        names, records = list(value.columns), lambda: value.to_dict("records")
    else:
        return value
    if (twice := next((name for name in names if list(names).count(name) > 1), None)) is not None:
        raise SourceError(f"Two columns of the table are called {twice!r}.", "Give each column a name of its own.")
    return records()


def as_row(item: Any) -> dict[str, Any]:
    """Give an item as a row."""
    return item if isinstance(item, dict) else {"item": item}
