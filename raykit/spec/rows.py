"""Which rows a value of the user's has."""

from __future__ import annotations

import json
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


def as_json(called: str, value: Any) -> str:
    """Write a request or an answer; arrays and tensors become lists, numbers of numpy plain ones.

    Raises:
        TypeError: it holds something that JSON has no word for.
    """

    def plain(value: Any) -> Any:
        if hasattr(value, "tolist"):
            return value.tolist()
        raise TypeError(f"{called} has a {type(value).__name__}, which JSON has no word for: give numbers, texts, lists and dicts")

    return json.dumps(value, default=plain)
