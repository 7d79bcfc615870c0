"""Modules beside the notebook that were edited after this process imported them: a run uses them as they are on disk."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

import psutil

from raykit.wire.payload import ModuleText


def edited_modules(modules: Mapping[str, ModuleText]) -> list[str]:
    """Return a sentence for each module whose code in this process is not that of its file.

    Only files that were written since this process began are compared, so it costs nothing where none was.
    """
    found = []
    for name, source in sorted(modules.items()):
        module = sys.modules.get(name)
        if module is not None and _mtime_s(source.filename) >= _began_s() and (changed := sorted(_differences(module, source))):
            what = ", ".join(changed[:3]) + (", ..." if len(changed) > 3 else "")  # noqa: PLR2004
            found.append(
                f"{Path(source.filename).name} was edited after this kernel imported it ({what}): "
                "the run uses the file on disk, the kernel the earlier one until it is reloaded."
            )
    return found


@cache
def _began_s() -> float:
    return psutil.Process().create_time()


def _mtime_s(filename: str) -> float:
    try:
        return Path(filename).stat().st_mtime
    except OSError:
        return 0.0


def _differences(module: ModuleType, source: ModuleText) -> set[str]:
    """Return the names of functions, classes and simple constants that the file has otherwise than the module."""
    try:
        code = compile(source.text, source.filename, "exec", dont_inherit=True)
    except SyntaxError:
        return {"it is no Python any more"}
    on_disk: dict[str, list[CodeType]] = {}
    for name, each in _definitions(code):
        on_disk.setdefault(name, []).append(each)
    here = dict(_functions(module))
    changed = {name for name, each in here.items() if not any(_is_same(each, other) for other in on_disk.get(name, ()))}
    added = {name for name in on_disk if "." not in name and name not in vars(module)}
    return {name.partition(".")[0] for name in changed} | added | set(_constants(module, source.text))


def _definitions(code: CodeType) -> Iterator[tuple[str, CodeType]]:
    """Return the code of the functions of a module and of its classes, by qualified name; a class as itself."""
    for each in code.co_consts:
        if isinstance(each, CodeType) and each.co_qualname.replace(".", "").isidentifier():
            yield each.co_qualname, each
            if not each.co_flags & inspect.CO_OPTIMIZED:  # the body of a class
                yield from _definitions(each)


def _functions(module: ModuleType) -> Iterator[tuple[str, CodeType]]:
    """Return the code of what a module defines, as it is in this process."""
    own = [each for each in vars(module).values() if getattr(each, "__module__", None) == module.__name__]
    inside = [part for each in own if isinstance(each, type) for part in vars(each).values()]
    for each in (*own, *inside):
        function = inspect.unwrap(getattr(each, "__func__", None) or getattr(each, "fget", None) or each)
        if isinstance(function, FunctionType) and function.__module__ == module.__name__:
            code = function.__code__
            if code.co_qualname.replace(".", "").isidentifier():  # not one that a function or a lambda made
                yield code.co_qualname, code


def _is_same(one: CodeType, other: CodeType) -> bool:
    """Return whether two pieces of code do the same, on whatever lines they stand."""
    parts = [(each.co_code, each.co_names, each.co_varnames, each.co_freevars, len(each.co_consts)) for each in (one, other)]
    return parts[0] == parts[1] and all(
        _is_same(a, b) if isinstance(a, CodeType) and isinstance(b, CodeType) else repr(a) == repr(b)
        for a, b in zip(one.co_consts, other.co_consts, strict=True)
    )


def _constants(module: ModuleType, text: str) -> Iterator[str]:
    """Return the names that the file sets once, to a number or a text, and that have another one in this process."""
    set_to: dict[str, list[ast.expr]] = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    set_to.setdefault(target.id, []).append(node.value)
    for name, values in set_to.items():
        if len(values) == 1 and isinstance(values[0], ast.Constant) and repr(vars(module).get(name)) != repr(values[0].value):
            yield name
