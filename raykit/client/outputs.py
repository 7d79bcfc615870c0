"""The names that a cell will have set when it is over, as far as its text says so: what ``-o`` can ask for."""

from __future__ import annotations

import difflib
import dis
import re
import symtable
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any

from raykit.errors import CellError
from raykit.wire.payload import compiled

SETS_ANY = {"exec", "eval", "globals", "locals", "vars"}
"""Who uses one of these may set any name."""

COMPREHENSIONS = {"listcomp", "setcomp", "dictcomp", "genexpr"}


def check_outputs(text: str, outputs: Iterable[str], names: Mapping[str, Any], *, inputs: Iterable[str] = ()) -> None:
    """Refuse outputs that the cell does not set, and that do not travel with it either.

    Args:
        text: the cell's. Where it is no Python nothing is refused here.
        outputs: the names that are asked for.
        names: the notebook's.
        inputs: those that travel; what the cell reads of the notebook's if not given.

    Raises:
        CellError: an output that will not be there, with the name that may have been meant.
    """
    try:
        bound, read = bound_names(text), read_names(text)
    except SyntaxError:
        return
    if bound is None:
        return
    there = bound | (set(inputs) or read & names.keys()) | _set_by_functions(names)
    for output in outputs:
        if output not in there:
            near = difflib.get_close_matches(output, sorted(there), n=1)
            meant = f"Did you mean {near[0]}?" if near else f"Set it in the cell: {output} = ..."
            raise CellError(f"-o {output}: the cell sets no such name.", f"{meant} Nothing was started.")


def bound_names(text: str) -> set[str] | None:
    """Return the names that a cell's text sets at its top, or declares global in a function; None where it may set any.

    Raises:
        SyntaxError: it is no Python.
    """
    if re.search(r"^\s*from\s+\S+\s+import\s+\*", text, re.MULTILINE):
        return None
    compiled(text, "cell")
    top = symtable.symtable(text, "cell", "exec")
    found: set[str] = set()
    for table in _tables(top):
        for symbol in table.get_symbols():
            if symbol.get_name() in SETS_ANY and symbol.is_referenced():
                return None
            # A walrus in a comprehension is a global of the comprehension's own table.
            if table is top or symbol.is_declared_global():
                is_set = symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()
                if is_set or (table is not top and table.get_name() in COMPREHENSIONS):
                    found.add(symbol.get_name())
    return found


def read_names(text: str) -> set[str]:
    """Return the names that a cell's text reads, wherever it does."""
    return {
        symbol.get_name()
        for table in _tables(symtable.symtable(text, "cell", "exec"))
        for symbol in table.get_symbols()
        if symbol.is_referenced()
    }


def _tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for child in table.get_children():
        yield from _tables(child)


def _set_by_functions(names: Mapping[str, Any]) -> set[str]:
    """Return the globals that the notebook's own functions set."""
    functions = [each for each in list(names.values()) if isinstance(each, FunctionType) and each.__module__ == "__main__"]
    return {name for each in functions for name in _globals_set_in(each.__code__)}


def _globals_set_in(code: CodeType) -> Iterator[str]:
    yield from (each.argval for each in dis.get_instructions(code) if each.opname == "STORE_GLOBAL")
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _globals_set_in(inner)
