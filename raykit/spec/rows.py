"""Which rows a value of the user's has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any


def rows_in(value: Any) -> Iterator[dict[str, Any]] | None:
    """Give the rows of an iterable or of a table of pandas; items that are no dicts become ``{"item": item}``.

    None of what has no rows: a dict is one row, and of a text nobody wants the letters.
    """
    if hasattr(value, "to_dict") and hasattr(value, "columns"):
        value = value.to_dict("records")
    if isinstance(value, dict | str | bytes) or not isinstance(value, Iterable):
        return None
    return map(as_row, value)


def as_row(item: Any) -> dict[str, Any]:
    """Give an item as a row."""
    return item if isinstance(item, dict) else {"item": item}
