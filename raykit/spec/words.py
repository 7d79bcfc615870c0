"""The words of the magics as keywords of Python's functions, with the same values, and errors that name the nearest."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, fields
from typing import Any, ParamSpec, TypeVar

from raykit.errors import OptionError
from raykit.spec.options import amount, count, hourly, memory, one_or_range, percent, seconds
from raykit.spec.parse import nearest

P = ParamSpec("P")
R = TypeVar("R")

WHOLE, REAL = (count, memory, one_or_range), (amount, seconds, hourly, percent)


def keywords(kind: type[Any]) -> dict[str, Field[Any]]:
    """Return the options of a spec by their words in Python: ``max_cost`` for ``--max-cost``, and ``name``."""
    described = [each for each in fields(kind) if "option" in each.metadata]
    return {_word(each.metadata["option"][0][0]): each for each in described}


def values_of(kind: type[Any], given: Mapping[str, Any], *, command: str) -> dict[str, Any]:
    """Return the fields of a spec that words of Python mean; the names of its fields are understood too.

    A text is read as in the magic's line (``idle="20m"``), so are the forms of Python: ``nodes=(0, 8)``,
    ``labels={"team": "vision"}``, ``hosts=["a", "b"]``.

    Raises:
        OptionError: an unknown word (the nearest is named), or a value that does not fit.
    """
    known = keywords(kind)
    by_field = {each.name: each for each in known.values()}
    values: dict[str, Any] = {}
    for word, value in given.items():
        if (described := known.get(word) or by_field.get(word)) is None:
            raise _unknown(word, known, command)
        if described.name in values:
            raise OptionError(f"{command}: {word} was given twice.", "Give it once.")
        try:
            values[described.name] = _value(described.metadata["option"][2], value)
        except ValueError as exc:
            raise OptionError(f"{command}: {word}: {exc}.", "Give it as in the magic; see its --help.") from exc
    return values


def nearest_named(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function refuse a wrong keyword by naming the nearest of its own, as a magic does.

    Raises:
        OptionError: from the function that is made, where Python would raise a bare TypeError.
    """
    signature = inspect.signature(function)
    known = [name for name, each in signature.parameters.items() if each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD)]
    takes_all = any(each.kind is each.VAR_KEYWORD for each in signature.parameters.values())

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        if not takes_all and (wrong := next((name for name in kwargs if name not in known), None)) is not None:
            raise _unknown(wrong, [name for name in known if name != "self"], f"rk.{function.__qualname__}")
        return function(*args, **kwargs)

    return checked


def _word(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_").lower()


def _unknown(word: str, known: Iterable[str], command: str) -> OptionError:
    return OptionError(f"{command}: unknown word {word}.", nearest(word, list(known)))


def _value(read: Callable[[str], Any] | None, value: Any) -> Any:
    """Return a value as its field has it."""
    if isinstance(value, bool) or read is None:
        if read is not None or not isinstance(value, bool):
            raise ValueError(f"{value!r} is {'no value for it' if read else 'neither True nor False'}")
        return value
    if isinstance(value, str):
        return read(value)
    if isinstance(value, Mapping):
        return tuple((str(key), str(each)) for key, each in value.items())
    if isinstance(value, int | float):
        return _number(read, value)
    return tuple(value) if isinstance(value, list | tuple) else value


def _number(read: Callable[[str], Any], value: float) -> Any:
    if read in WHOLE and not isinstance(value, int):
        raise ValueError(f"{value!r} is not a whole number")
    if read not in WHOLE + REAL:
        return read(str(value))
    amount(str(value))
    return value
