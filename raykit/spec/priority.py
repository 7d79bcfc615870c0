"""Whose work comes first where there is not enough for all."""

from __future__ import annotations

from typing import Any, Literal

from raykit.errors import OptionError
from raykit.spec.options import option

Priority = Literal["low", "normal", "high"]
RANKS: dict[str, int] = {"low": 0, "normal": 1, "high": 2}


def priority_option(default: Priority = "normal") -> Any:
    """Describe the option of a run's spec."""
    return option(
        "--priority", default=default, read=str, metavar="WORD",
        help="low, normal or high: elastic training lends what it can spare to runs of a higher one",
    )  # fmt: skip


def check_priority(priority: str) -> None:
    """Refuse a word that is no priority.

    Raises:
        OptionError: with those that are.
    """
    if priority not in RANKS:
        raise OptionError(f"--priority is {priority!r}.", f"There are: {', '.join(RANKS)}.")
