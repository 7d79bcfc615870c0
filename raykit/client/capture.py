"""From a cell's text and the notebook's names to what travels: only what the cell uses, checked before it goes."""

from __future__ import annotations

import ast
import builtins
import importlib.util
import linecache
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from raykit.client.names import Names, imported_modules, names_read
from raykit.client.pickling import TooLargeError, pickled, room_bytes
from raykit.errors import CaptureError, CellError
from raykit.wire.buffers import LARGE_BYTES
from raykit.wire.payload import CellWork, Labelled, ModuleText, Payload, SourceText, compiled


def capture_cell(text: str, names: Mapping[str, Any], *, title: str, inputs: Iterable[str] = ()) -> Payload:
    """Pack a cell with the names of the notebook that it uses (or with ``inputs`` alone).

    Raises:
        CellError: a syntax error, or a name that neither the cell nor the notebook defines.
        CaptureError: a name that does not pickle, or a pickle for which this machine has no memory.
    """
    read = check_names(text, names, title)
    needed, wanted = set(read.needed | read.guarded), {name for name in read.wanted if name in names}
    if inputs := tuple(inputs):
        needed, wanted = set(inputs), set()
        if missing := [name for name in inputs if name not in names]:
            raise CellError(f"-i {missing[0]}: the notebook has no such name.", "Define it, or correct its spelling.")
    left_out: dict[str, str] = {}
    try:
        return _packed_cell(text, title, {name: names[name] for name in sorted(needed | wanted) if name in names}, left_out)
    except CaptureError:
        for name in sorted(wanted):
            try:
                pack(names[name], {name: names[name]}, {}, {})
            except CaptureError as exc:
                left_out[name] = exc.problem
        if not left_out:
            raise
    captured = {name: names[name] for name in sorted(needed | wanted - set(left_out)) if name in names}
    return _packed_cell(text, title, captured, left_out)


def _packed_cell(text: str, title: str, captured: dict[str, Any], left_out: dict[str, str]) -> Payload:
    modules = modules_beside(imported_modules(_parsed(text, title)), captured.values())
    work = CellWork(text=text, filename=title, names=captured, left_out=left_out)
    return pack(work, captured, {title: SourceText(title=title, text=text)}, modules)


def check_names(text: str, names: Mapping[str, Any], title: str) -> Names:
    """Return the names of the notebook that a cell reads, when those that it needs are known.

    Raises:
        CellError: a syntax error, or a name that neither the cell nor the notebook defines.
    """
    read = names_read(_parsed(text, title))
    missing = sorted(name for name in read.needed if name not in names and not hasattr(builtins, name))
    if missing:
        raise CellError(
            f"name {missing[0]!r} is not defined in the cell or in the notebook.", "Define it, or correct its spelling."
        )
    return read


def pack(
    work: Any, named: Mapping[str, Any], texts: dict[str, SourceText], modules: dict[str, ModuleText] | None = None
) -> Payload:
    """Pickle ``work``; when that fails, ``named`` says which of its parts is to blame.

    Raises:
        CaptureError: the name, what it is, and what to do.
    """
    room = room_bytes()
    try:
        body, buffers = pickled(Labelled.of(work, named), room)
    except Exception as exc:
        raise _blame(named, exc, room) from exc
    modules = modules if modules is not None else modules_beside((), named.values(), body)
    texts = _cells_named_in(body) | texts
    if len(body) >= LARGE_BYTES:
        body, buffers = b"", (*buffers, memoryview(body))
    return Payload(body=body, texts=texts, modules=modules, raw={"": buffers} if buffers else {})


def with_extra(payload: Payload, name: str, value: Any, *, called: str = "") -> Payload:
    """Return a payload with one more object, which is used elsewhere than the work itself; a person knows it as ``called``.

    Raises:
        CaptureError: it does not pickle, or this machine has no memory for its pickle.
    """
    beside = pack(value, {called or name: value}, {})
    return replace(
        payload,
        texts=beside.texts | payload.texts,
        modules=beside.modules | payload.modules,
        extras=payload.extras | {name: beside.body},
        raw=payload.raw | ({name: beside.raw[""]} if beside.raw else {}),
    )


def _parsed(text: str, title: str) -> ast.Module:
    """Return the syntax tree of a cell.

    Raises:
        CellError: the text is no Python; line and mark are given.
    """
    try:
        compiled(text, title)
        return ast.parse(text, title)
    except SyntaxError as exc:
        line = (exc.text or "").rstrip()
        mark = f"{line}\n{' ' * max(0, (exc.offset or 1) - 1)}^"
        is_ipython = line.lstrip().startswith(("!", "%"))
        words = "Lines that begin with ! or % are for a cell of the notebook's own. " if is_ipython else ""
        raise CellError(f"{title}, line {exc.lineno}: {exc.msg}\n{mark}", f"{words}Nothing was started.") from exc


def modules_beside(imports: Iterable[str], values: Iterable[Any], body: bytes = b"") -> dict[str, ModuleText]:
    """Give the text of every module beside the notebook or script that it imports, its values come from, or ``body`` names."""
    homes = _homes()
    wanted = {name for name in imports if _file_beside(name, homes)}
    for value in values:
        home = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None) or type(value).__module__
        wanted.add(str(home).partition(".")[0])
    if body:
        wanted |= {name for name in list(sys.modules) if "." not in name and _file_beside(name, homes) and name.encode() in body}
    # What such a module imports in its turn was imported here too, if it was used here.
    tops = {name for name in wanted if _file_beside(name, homes)}
    if tops:
        tops |= {name for name in list(sys.modules) if "." not in name and _file_beside(name, homes)}
    found: dict[str, ModuleText] = {}
    for top in tops:
        file = _file_beside(top, homes)
        if file is not None:
            found |= _texts_of(top, file)
    return found


def _homes() -> list[Path]:
    """Give the folders whose modules travel: the working folder, and that of the script that runs."""
    script = getattr(sys.modules["__main__"], "__file__", None)
    return [Path.cwd().resolve(), *([Path(script).resolve().parent] if script else [])]


def _file_beside(name: str, homes: Iterable[Path]) -> Path | None:
    module = sys.modules.get(name)
    try:
        origin = getattr(module, "__file__", None) if module else getattr(importlib.util.find_spec(name), "origin", None)
    except Exception:  # a module may answer with whatever its own __getattr__ raises
        return None
    if name == "__main__" or not origin or not str(origin).endswith(".py"):
        return None
    file = Path(origin).resolve()
    installed = any(part in ("site-packages", "dist-packages") for part in file.parts)
    is_beside = any(file.is_relative_to(home) for home in homes)
    return file if is_beside and not installed and not file.is_relative_to(sys.prefix) and name != "raykit" else None


def _texts_of(name: str, file: Path) -> dict[str, ModuleText]:
    if file.name != "__init__.py":
        return {name: ModuleText(filename=str(file), text=file.read_text(), is_package=False)}
    found = {}
    for part in file.parent.rglob("*.py"):
        words = [name, *part.relative_to(file.parent).with_suffix("").parts]
        is_package = words[-1] == "__init__"
        dotted = ".".join(words[:-1] if is_package else words)
        found[dotted] = ModuleText(filename=str(part), text=part.read_text(), is_package=is_package)
    return found


def _blame(named: Mapping[str, Any], error: Exception, room: int) -> CaptureError:
    """Find the name that does not pickle, also among the globals of the cell's own functions and classes."""
    inner = {key: each for work in named.values() for key, each in _globals_of(work).items()}
    for name, value in {**named, **inner}.items():
        if isinstance(value, FunctionType | type) and getattr(value, "__module__", "") == "__main__" and _globals_of(value):
            continue
        try:
            pickled(value, room)
        except (TooLargeError, MemoryError):
            return _too_large(f"{name!r} ({type(value).__name__})", room)
        except Exception as exc:
            return CaptureError(
                f"{name!r} ({type(value).__module__}.{type(value).__name__}) does not pickle: {exc}",
                f"Build {name} where it is used: in the cell's own text, or in the __init__ of the stage.",
            )
    if isinstance(error, TooLargeError | MemoryError):
        return _too_large("What the cell uses", room)
    return CaptureError(
        f"What the cell uses does not pickle: {error}", "Build it in the cell's own text, or in the __init__ of the stage."
    )


def _too_large(whose: str, room: int) -> CaptureError:
    return CaptureError(
        f"{whose} takes more than {room / 1e9:.3g} GB as a pickle, and {room / 1e9:.3g} GB of this machine's memory are free.",
        "Give it as an array or a tensor, which travel without a copy; or write it to a file and read that in the cell.",
    )


def _globals_of(value: Any) -> dict[str, Any]:
    functions = [each for each in vars(value).values() if isinstance(each, FunctionType)] if isinstance(value, type) else [value]
    found: dict[str, Any] = {}
    for function in functions:
        if isinstance(function, FunctionType):
            known = function.__globals__
            found |= {
                name: known[name]
                for name in function.__code__.co_names
                if name in known and not isinstance(known[name], ModuleType)
            }
            for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
                found[name] = cell.cell_contents
    return found


def _cells_named_in(body: bytes) -> dict[str, SourceText]:
    """Give the text of the notebook's cells whose code lies in ``body``, for tracebacks."""
    found = {}
    for filename, entry in list(linecache.cache.items()):
        if len(entry) > 1 and filename.encode() in body and not os.path.exists(filename):
            found[filename] = SourceText(title=cell_titles().get(filename, filename), text="".join(entry[2]))
    return found


def cell_titles() -> dict[str, str]:
    """Give the notebook's own names of its cells by IPython's file names; empty outside IPython."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    numbers = getattr(getattr(shell, "compile", None), "_filename_map", {})
    return {filename: f"Cell In[{number}]" for filename, number in numbers.items()}
