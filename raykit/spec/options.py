"""The fields of a spec as the options of a magic's line: one description for parsing, help and completion."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import field
from typing import Any

from raykit.errors import OptionError


def option(
    *flags: str,
    default: Any,
    help: str,  # noqa: A002  (argparse's own word for it)
    read: Callable[[str], Any] | None = None,
    metavar: str | None = None,
    places: tuple[str, ...] = (),
) -> Any:
    """Describe a dataclass field that a magic's line can set.

    Args:
        flags: ``--workers``; a name without dashes is a positional argument.
        default: the field's default.
        help: one line for ``--help``.
        read: text to value; raises ValueError with a sentence. Without it the option is a switch.
        metavar: how the value is called in the help.
        places: the places of a cluster that know it; all of them if none is named.
    """
    text = f"{help} ({', '.join(places)})" if places else help
    return field(default=default, metadata={"option": (flags, text, read, metavar), "places": places})


def count(text: str) -> int:
    """Read a whole number, zero or more."""
    if not text.isdigit():
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def amount(text: str) -> float:
    """Read a number, zero or more; fractions of a GPU are such numbers."""
    value = float(text)
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{text!r} is not an amount")
    return value


def counts(text: str) -> tuple[int, int]:
    """Read ``3`` as (3, 3) and ``1:4`` as (1, 4)."""
    low, _, high = text.partition(":")
    pair = count(low), count(high or low)
    if pair[0] > pair[1]:
        raise ValueError(f"{text} goes from more to less: write {pair[1]}:{pair[0]}")
    return pair


def one_or_range(text: str) -> int | tuple[int, int]:
    """Read ``3`` as 3 and ``0:8`` as (0, 8)."""
    low, high = counts(text)
    return low if low == high else (low, high)


def pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Read ``a=1,b=2`` as (("a", "1"), ("b", "2"))."""
    found = tuple((key.strip(), value.strip()) for key, _, value in (part.partition("=") for part in text.split(",")))
    for key, value in found:
        if not key or not value:
            raise ValueError(f"{text!r} is no list of KEY=VALUE")
    return found


def variables(text: str) -> tuple[tuple[str, str | None], ...]:
    """Read ``A=1,B`` as (("A", "1"), ("B", None))."""
    found = []
    for part in filter(None, map(str.strip, text.split(","))):
        name, given, value = part.partition("=")
        if not name.isidentifier():
            raise ValueError(f"{part!r} is no variable: write NAME=VALUE, or NAME for the kernel's own value")
        found.append((name, value if given else None))
    return tuple(found)


def words(text: str) -> tuple[str, ...]:
    """Read ``a,b`` as ("a", "b"), whatever the words are made of."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def names(text: str) -> tuple[str, ...]:
    """Read ``a,b`` as ("a", "b"); each must be a Python name."""
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    for name in found:
        if not name.isidentifier():
            raise ValueError(f"{name!r} is not a name")
    return found


def seconds(text: str) -> float:
    """Read ``200ms``, ``90``, ``90s``, ``5m``, ``2h`` or ``7d`` as seconds."""
    if text.endswith("ms"):
        return amount(text[:-2]) / 1000
    factor = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(text[-1:], 0)
    return amount(text[:-1]) * factor if factor else amount(text)


def hourly(text: str) -> float:
    """Read ``30/h`` as 30."""
    rate, slash, unit = text.partition("/")
    if not slash or unit != "h":
        raise ValueError(f"{text!r} is no rate: write it as 30/h, or give what it may cost in all as --budget")
    return amount(rate)


def percent(text: str) -> float:
    """Read ``5%`` or ``5`` as 0.05."""
    share = amount(text.removesuffix("%")) / 100
    if not 0 < share <= 1:
        raise ValueError(f"{text!r} is no share: write it as 5%")
    return share


def counts_by_word(text: str) -> tuple[tuple[str, int], ...]:
    """Read ``10`` as (("", 10),) and ``hung=2,node=1`` as (("hung", 2), ("node", 1))."""
    pairs = [part.rpartition("=") for part in text.split(",") if part.strip()]
    return tuple((word.strip(), count(number.strip())) for word, _, number in pairs)


def memory(text: str) -> int:
    """Read ``200M`` or ``2G`` as bytes."""
    factor = {"K": 10**3, "M": 10**6, "G": 10**9}.get(text[-1:].upper(), 0)
    return int(amount(text[:-1]) * factor) if factor else count(text)


def check_range(what: str, low: float, high: float, *, least: float = 0) -> None:
    """Refuse a range that is empty or starts below ``least``.

    Raises:
        OptionError: with the range that was given.
    """
    if low > high:
        raise OptionError(f"{what} is {low:g}:{high:g}.", f"The smaller number stands first: write {high:g}:{low:g}.")
    if low < least:
        raise OptionError(f"{what} is {low:g}:{high:g}.", f"Give at least {least:g}: 1:4 for one to four.")
