"""Objects of the user's whose calls go through raykit: a scheduler's ``step`` after a dropped step has to change nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Guard = Callable[..., Any]
"""Called with the original bound method, and with the arguments of the call."""


def guard(target: Any, **guards: Guard) -> None:
    """Route calls of the named methods of ``target`` through guards.

    The object gets a subclass of its class: schedulers make their state of their ``__dict__``, which therefore stays as it
    is. Copies and pickles of the object have the original class.
    """
    kind = type(target)
    guarded: Any = None

    def routed(name: str, through: Guard) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return through(getattr(super(guarded, self), name), *args, **kwargs)

        return call

    methods: dict[str, Any] = {name: routed(name, through) for name, through in guards.items()}
    methods["__reduce_ex__"] = lambda self, protocol: _as_original(super(guarded, self).__reduce_ex__(protocol), guarded, kind)
    guarded = type(kind.__name__, (kind,), {**methods, "__slots__": (), "__module__": kind.__module__, "__doc__": kind.__doc__})
    target.__class__ = guarded


def original(target: Any, name: str) -> Callable[..., Any]:
    """Return the bound method of a guarded object without its guard."""
    method: Callable[..., Any] = getattr(super(type(target), target), name)
    return method


def _as_original(reduced: Any, guarded: type, kind: type) -> Any:
    if isinstance(reduced, str):
        return reduced
    function, arguments, *rest = reduced
    return (function, tuple(kind if each is guarded else each for each in arguments), *rest)
