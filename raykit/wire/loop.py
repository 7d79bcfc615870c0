"""A loop of Ray Train, as a cell defines it or a function is given: checked before it travels, called as Ray Train would."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from raykit.errors import CellError
from raykit.wire.payload import CellWork, FunctionWork

LOOP = "train_loop_per_worker"
CONFIG = "train_loop_config"
REMEDY = f"Define def {LOOP}(config): ..., with or without the parameter."


def check_loop(loop: Any) -> None:
    """Refuse what Ray Train could not call.

    Raises:
        CellError: it is no function, or takes more than a config.
    """
    if not callable(loop):
        raise CellError(f"{LOOP} is {loop!r}, which cannot be called.", REMEDY)
    _check_count(_num_required(loop))


def check_cell(text: str, names: Mapping[str, Any]) -> None:
    """Refuse a cell that defines no loop, as far as its text says; ``names`` are those of the notebook.

    Raises:
        CellError: it defines none, or one that Ray Train could not call.
    """
    body = ast.parse(text).body
    bound = [node for node in body if LOOP in _bound_by(node)]
    if not bound:
        if any("*" in _bound_by(node) for node in body):
            return
        raise CellError(f"The cell defines no {LOOP}.", REMEDY)
    last = bound[-1]
    if isinstance(last, ast.FunctionDef):
        asked = last.args
        _check_count(len(asked.posonlyargs) + len(asked.args) - len(asked.defaults) + bool(asked.vararg))
    value = getattr(last, "value", None)
    if isinstance(value, ast.Name) and value.id in names:
        check_loop(names[value.id])
    if isinstance(value, ast.Constant | ast.Dict | ast.List | ast.Tuple | ast.Set | ast.JoinedStr):
        raise CellError(f"{LOOP} is {ast.unparse(value)}, which cannot be called.", REMEDY)


def call_loop(work: CellWork | FunctionWork) -> None:
    """Run a cell and the loop that it defines, or a function, with its config where it asks for one.

    Raises:
        CellError: as :func:`check_loop`; what the text of a cell did not tell shows here.
    """
    if isinstance(work, CellWork):
        names = work.run()
        if LOOP not in names:
            raise CellError(f"The cell defines no {LOOP}.", REMEDY)
        loop, config = names[LOOP], names.get(CONFIG)
    else:
        loop, config = work.function, next(iter(work.args), None)
    check_loop(loop)
    if _num_required(loop):
        loop({} if config is None else config)
    else:
        loop()


def _check_count(num_required: int) -> None:
    if num_required > 1:
        raise CellError(f"{LOOP} asks for {num_required} arguments; Ray Train gives it a config or nothing.", REMEDY)


def _num_required(loop: Callable[..., Any]) -> int:
    """Count as Ray Train counts: an optional config is not given, and ``*args`` asks for one."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    parameters = inspect.signature(loop).parameters.values()
    return sum(each.kind in kinds and each.default is inspect.Parameter.empty for each in parameters)


def _bound_by(node: ast.stmt) -> set[str]:
    """Give the names that a statement of the cell's top level sets, those within its blocks too."""
    found = set()
    for each in ast.walk(node):
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(each.name)
        if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store):
            found.add(each.id)
        if isinstance(each, ast.alias):
            found.add(each.asname or each.name)
    return found
