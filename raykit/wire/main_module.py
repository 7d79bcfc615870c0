"""The notebook's ``__main__`` in a process of a run: there plain pickle finds what a cell defines, or brought along.

A kernel runs all cells in the namespace of one module, ``__main__``. A process that runs a cell or a function of a notebook
has such a module too: cloudpickle's functions get its namespace as their globals, so that ``global`` means the same in all of
them, and its classes and functions are attributes of it, so that ``torch.save(model)`` and ``Pool.map`` find them by name.
"""

from __future__ import annotations

import builtins
import io
import pickle
import sys
from collections.abc import Callable, Iterable
from types import FunctionType, ModuleType
from typing import Any

import cloudpickle.cloudpickle as cloud

NAME = "__main__"


class MainModule(ModuleType):
    """``__main__`` of a process of a run; ``before`` is what was the process's own."""

    before: ModuleType | None = None


def become_main() -> None:
    """Make ``__main__`` of this process a module of the user's names. A second call changes nothing."""
    if not isinstance(before := sys.modules[NAME], MainModule):
        module = MainModule(NAME)
        module.before = before
        sys.modules[NAME] = module
        builtins.display = _display  # type: ignore[attr-defined]  # a kernel's builtin, which code of a notebook calls


def namespace_of_main() -> dict[str, Any] | None:
    """Return the names of ``__main__`` where this process belongs to a run; None in a kernel, whose own they are."""
    module = sys.modules[NAME]
    return vars(module) if isinstance(module, MainModule) else None


def loads(data: bytes | memoryview, *, buffers: Iterable[Any] | None = None) -> Any:
    """Unpickle the user's objects; in a process of a run those of ``__main__`` become its ``__main__``'s."""
    if namespace_of_main() is None:
        return pickle.loads(data, buffers=buffers)  # noqa: S301  (what the door takes has passed its token)
    return _Unpickler(io.BytesIO(data), buffers=buffers).load()


def name_in_main(value: Any) -> None:
    """Make a class or a function that a cell defined an attribute of ``__main__``, as it is in the notebook."""
    names = namespace_of_main()
    name = getattr(value, "__qualname__", "")
    if names is not None and getattr(value, "__module__", None) == NAME and name.isidentifier():
        names[name] = value


def _display(*objects: Any, **_: Any) -> None:
    """Print objects, as IPython's ``display`` does where there is no notebook."""
    print(*objects)  # noqa: T201  (the user's own output)


class _Unpickler(pickle.Unpickler):
    """Calls what stands below where a pickle of cloudpickle's names one of its own functions."""

    def find_class(self, module: str, name: str) -> Any:
        ours = _OURS.get(name) if module == cloud.__name__ else None
        return ours or super().find_class(module, name)


def _make_function(code: Any, names: dict[str, Any], *rest: Any) -> FunctionType:
    own = namespace_of_main()
    if own is not None and names.get("__name__") == NAME:
        for key, value in names.items():
            own.setdefault(key, value)
        names = own
    made: FunctionType = cloud._make_function(code, names, *rest)  # noqa: SLF001  (it is named so in every pickle)
    return made


def _function_setstate(function: Any, state: Any) -> None:
    cloud._function_setstate(function, state)  # noqa: SLF001
    _known(function)


def _class_setstate(kind: Any, state: Any) -> Any:
    made = cloud._class_setstate(kind, state)  # noqa: SLF001
    _known(kind)
    return made


def _known(value: Any) -> None:
    """Name what travelled, unless the name is another's already: that of a decorated function is its wrapper's."""
    if value.__qualname__ not in (namespace_of_main() or {}):
        name_in_main(value)


_OURS: dict[str, Callable[..., Any]] = {
    "_make_function": _make_function,
    "_function_setstate": _function_setstate,
    "_class_setstate": _class_setstate,
}
