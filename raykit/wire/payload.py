"""What travels to the cluster beside a spec: the user's code and values, and the text that tracebacks need.

The envelope is plain data; the user's objects lie inside as bytes, so that the hub can keep a payload without
importing a line of the user's. It is unpickled only where it runs.
"""

from __future__ import annotations

import ast
import asyncio
import importlib.abc
import importlib.util
import inspect
import linecache
import pickle
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from raykit.wire.main_module import loads, name_in_main, namespace_of_main
from raykit.wire.place import Place

SOURCE = "source"
"""The extra of a pipeline that is its source's items, or its function; the body is the callables of its stages, in their order."""


RAY_TRAIN = "ray_train"
"""The extra of a run of Ray Train with what it is given besides the loop: a dict with ``datasets`` and ``run_config``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceText:
    """The text of a cell or of a file beside the notebook, and how a person calls it."""

    title: str
    text: str

    def line(self, number: int | None) -> str:
        """Give a line by its number from one on; empty where there is none."""
        lines = self.text.splitlines()
        return lines[number - 1].strip() if number and number <= len(lines) else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleText:
    """A module beside the notebook, by value."""

    filename: str
    text: str
    is_package: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """The user's objects as bytes (cloudpickle), with texts by file name and modules by name.

    ``extras`` are further objects, by name, which are used elsewhere than the body: whoever runs the body opens none of them.
    """

    body: bytes
    texts: dict[str, SourceText] = field(default_factory=dict)
    modules: dict[str, ModuleText] = field(default_factory=dict)
    extras: dict[str, bytes] = field(default_factory=dict)
    place: Place = field(default_factory=Place)

    def to_bytes(self) -> bytes:
        return pickle.dumps(self)

    @staticmethod
    def from_bytes(data: bytes) -> Payload:
        payload = pickle.loads(data)  # noqa: S301  (what the door takes has passed its token)
        if not isinstance(payload, Payload):
            raise TypeError(f"a payload was wanted, {type(payload).__name__} came")
        return payload

    def open(self) -> Any:
        """Make texts and modules known to this process and give the user's objects."""
        self.known()
        work = loads(self.body)
        for each in work if isinstance(work, list) else (getattr(work, "function", work),):
            name_in_main(each)
        return work

    def open_extra(self, name: str) -> Any:
        """Make texts and modules known to this process and give one of the extras."""
        self.known()
        return loads(self.extras[name])

    def known(self) -> None:
        """Make texts and modules known to this process."""
        for filename, source in self.texts.items():
            linecache.cache[filename] = (len(source.text), None, source.text.splitlines(keepends=True), filename)
        if self.modules:
            sys.meta_path.insert(0, _ModuleFinder(self.modules))

    def traceback_of(self, error: BaseException) -> str:
        """Give the traceback from the user's first frame on, with cells called as the notebook calls them."""
        self.place.explain(error)
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_between(frame.filename)]
        lines = ["Traceback (most recent call last):\n", *traceback.format_list(self._named(frames))]
        return "".join([*lines, *traceback.format_exception_only(error)])

    def _named(self, frames: Iterable[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
        named = []
        for frame in frames:
            source = self.texts.get(frame.filename)
            line = source.line(frame.lineno) if source else frame.line
            title = source.title if source else frame.filename
            named.append(traceback.FrameSummary(title, frame.lineno, frame.name, line=line))
        return named


@dataclass(frozen=True, slots=True, kw_only=True)
class CellWork:
    """A cell's text with the names of the notebook that it uses.

    ``left_out`` are names that it may read before it sets them, and whose values do not travel; with the reason of each.
    """

    text: str
    filename: str
    names: dict[str, Any]
    left_out: dict[str, str] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        """Run the cell in the namespace of ``__main__`` and return the namespace; in a kernel, in one of its own."""
        namespace = namespace_of_main()
        if namespace is None:
            namespace = {"__name__": "__main__"}
        namespace.update(self.names, __builtins__=__builtins__)
        try:
            _awaited(eval(compiled(self.text, self.filename), namespace))  # noqa: S307  (running the user's cell is the purpose)
        except NameError as exc:
            if exc.name in self.left_out:
                exc.add_note(f"The notebook's {exc.name} did not travel: {self.left_out[exc.name]}")
            raise
        return namespace


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionWork:
    """A function with its arguments; its result comes back as ``result``."""

    function: Callable[..., Any]
    args: Sequence[Any] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        return {"result": _awaited(self.function(*self.args, **self.kwargs))}


def compiled(text: str, filename: str) -> CodeType:
    """Compile a cell, which may ``await`` outside of a function, as in a notebook.

    Raises:
        SyntaxError: it is no Python.
    """
    code: CodeType = compile(text, filename, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    return code


def _awaited(made: Any) -> Any:
    return asyncio.run(made) if inspect.iscoroutine(made) else made


class _ModuleFinder(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports modules that travelled as text; asked first, as the notebook finds what lies beside it first."""

    def __init__(self, modules: dict[str, ModuleText]) -> None:
        self._modules = modules

    def find_spec(self, fullname: str, _path: Any = None, _target: ModuleType | None = None) -> ModuleSpec | None:
        module = self._modules.get(fullname)
        if module is None:
            return None
        spec = importlib.util.spec_from_loader(fullname, self, origin=module.filename, is_package=module.is_package)
        if spec is not None:
            spec.has_location = True  # modules read their own __file__
        return spec

    def get_source(self, fullname: str) -> str:
        return self._modules[fullname].text

    def is_package(self, fullname: str) -> bool:
        return self._modules[fullname].is_package

    def get_code(self, fullname: str) -> CodeType:
        module = self._modules[fullname]
        lines = module.text.splitlines(keepends=True)
        linecache.cache[module.filename] = (len(module.text), None, lines, module.filename)
        return compile(module.text, module.filename, "exec", dont_inherit=True)


def _is_between(filename: str) -> bool:
    """Say whether a frame is of what lies between the notebook and the user's code: raykit, ray, what runs a coroutine."""
    here = str(Path(__file__).parents[1])
    return filename.startswith((here, asyncio.runners.__file__, asyncio.base_events.__file__)) or "/site-packages/ray/" in filename
