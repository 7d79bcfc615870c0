"""Variables of the environment that a person wants in a run's processes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from raykit.errors import InputError, OptionError


def given_variables(env: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    """Return the variables of ``--env``; those without a value have this process's own.

    Raises:
        OptionError: this process has no such variable.
    """
    found = {}
    for name, value in env:
        if value is None and name not in os.environ:
            raise OptionError(
                f"--env {name}: the kernel has no such variable.", f"Set it (%env {name}=...), or write --env {name}=VALUE."
            )
        found[name] = os.environ[name] if value is None else value
    return found


def checked_variables(env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of ``env=`` when all are text.

    Raises:
        InputError: the first that no environment can hold.
    """
    for name, value in env.items():
        if not isinstance(name, str) or not isinstance(value, str) or not name or "=" in name or "\0" in name + value:
            raise InputError(
                f"env={{{name!r}: ...}}: a {type(value).__name__} is no value of a variable.", "Give texts: env={'DEBUG': '1'}."
            )
    return dict(env)
