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
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from raykit.errors import CaptureError, RunError
from raykit.wire.main_module import loads, name_in_main, namespace_of_main
from raykit.wire.place import Place

SOURCE = "source"
"""The extra of a pipeline that is its source's items, or its function; the body is the callables of its stages, in their order."""


RAY_TRAIN = "ray_train"
"""The extra of a run of Ray Train with what it is given besides the loop: a dict with ``datasets`` and ``run_config``."""


TRAVELS = ("body", "texts", "modules", "extras", "large", "place")
"""What is written down of a payload."""


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
    ``large`` has the names of the large buffers of each extra, and under ``""`` those of the body, in the order in which they are
    unpickled. A pickle that is large itself is the last of its buffers, and empty here. ``raw`` are these buffers in the process
    that has made the payload; elsewhere ``read`` returns one by its name.
    """

    body: bytes
    texts: dict[str, SourceText] = field(default_factory=dict)
    modules: dict[str, ModuleText] = field(default_factory=dict)
    extras: dict[str, bytes] = field(default_factory=dict)
    place: Place = field(default_factory=Place)
    large: dict[str, tuple[str, ...]] = field(default_factory=dict)
    raw: dict[str, tuple[memoryview, ...]] = field(default_factory=dict, repr=False, compare=False)
    read: Callable[[str], memoryview] | None = field(default=None, repr=False, compare=False)

    @property
    def buffers(self) -> list[str]:
        """The names of all large buffers, each once."""
        return list(dict.fromkeys(name for names in self.large.values() for name in names))

    def to_bytes(self) -> bytes:
        """Return all but the large buffers."""
        assert not self.raw, "large buffers are sent first"
        return pickle.dumps({name: getattr(self, name) for name in TRAVELS})

    @staticmethod
    def from_bytes(data: bytes, *, read: Callable[[str], memoryview] | None = None) -> Payload:
        """Return the payload; ``read`` returns a large buffer by its name."""
        found = pickle.loads(data)  # noqa: S301  (what the door takes has passed its token)
        if isinstance(found, Payload):  # of a run that an earlier version has started
            found = {name: getattr(found, name) for name in TRAVELS if hasattr(found, name)}
        if not isinstance(found, dict):
            raise TypeError(f"a payload was wanted, {type(found).__name__} came")
        return Payload(**found, read=read)

    def open(self) -> Any:
        """Make texts and modules known to this process and return the user's objects.

        Raises:
            CaptureError: one of them cannot be unpickled here, with its name and the module that it needs.
        """
        work = self._opened("", self.body)
        for each in work if isinstance(work, list) else (getattr(work, "function", work),):
            name_in_main(each)
        return work

    def open_extra(self, name: str) -> Any:
        """Make texts and modules known to this process and return one of the extras.

        Raises:
            CaptureError: as for :meth:`open`.
        """
        return self._opened(name, self.extras[name])

    def _opened(self, part: str, pickled: bytes | memoryview) -> Any:
        self.known()
        buffers = self._buffers_of(part)
        if not pickled:
            *buffers, pickled = buffers
        return opened(pickled, buffers)

    def _buffers_of(self, part: str) -> list[memoryview]:
        if self.raw:  # as other processes would see it: nothing is shared
            return [memoryview(bytearray(view)) for view in self.raw.get(part, ())]
        names = self.large.get(part, ())
        if names and self.read is None:
            raise RunError("The large values of this payload were not brought along.", "Read it from its run's folder.")
        return [self.read(name) for name in names] if self.read else []

    def known(self) -> None:
        """Make texts and modules known to this process."""
        for filename, source in self.texts.items():
            linecache.cache[filename] = (len(source.text), None, source.text.splitlines(keepends=True), filename)
        if self.modules:
            sys.meta_path.insert(0, _ModuleFinder(self.modules))

    def traceback_of(self, error: BaseException) -> str:
        """Return the traceback as Python prints it, from the user's first frame on, with cells called as the notebook calls them.

        Causes, contexts, notes and the members of groups are in it. A context of raykit's or Ray's own code is left out.
        """
        self.place.explain(error)
        whole = traceback.TracebackException.from_exception(error, compact=True)
        self._show_user_s_frames(whole)
        return "".join(whole.format())

    def _show_user_s_frames(self, whole: traceback.TracebackException) -> None:
        """Leave the user's frames in an exception and in all that belong to it."""
        for each in _chain(whole):
            each.stack = traceback.StackSummary.from_list(self._named(each.stack))

    def _named(self, frames: Iterable[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
        named = []
        for frame in (frame for frame in frames if not _is_between(frame.filename)):
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


class _Opening(threading.local):
    """Whose value this thread unpickles."""

    name = ""


_opening = _Opening()


def begin(name: str) -> None:
    """Note whose value is unpickled next."""
    _opening.name = name


@dataclass(frozen=True, slots=True)
class Named:
    """Stands before a value in a pickle; where unpickling the value fails, it is known whose it is."""

    name: str

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return begin, (self.name,)


@dataclass(frozen=True, slots=True)
class Labelled:
    """What is pickled: the work, after the values that a person knows by a name, each after its ``Named``."""

    values: list[Any]
    work: Any

    @staticmethod
    def of(work: Any, named: Mapping[str, Any]) -> Labelled:
        values = [each for name, value in named.items() for each in (Named(name), value)]
        return Labelled([*values, Named("")], work)


def opened(pickled: bytes | memoryview, buffers: Iterable[memoryview] = ()) -> Any:
    """Unpickle a person's objects.

    Raises:
        CaptureError: one cannot be unpickled here.
    """
    begin("")
    try:
        made = loads(pickled, buffers=buffers)
    except Exception as exc:
        raise _not_here(_opening.name, exc) from exc
    return made.work if isinstance(made, Labelled) else made


def _not_here(name: str, error: Exception) -> CaptureError:
    whose = f"name {name!r}" if name else "what the cell uses"
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        return CaptureError(
            f"{whose} needs module {error.name}, which is not installed on the cluster: {error}",
            f"Install {package} there, put it beside the notebook, or build {name or 'it'} in the cell without it.",
        )
    return CaptureError(
        f"{whose} cannot be unpickled on the cluster: {type(error).__name__}: {error}",
        f"Its package may be of another version there; or build {name or 'it'} in the cell's own text.",
    )


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


def _chain(whole: traceback.TracebackException) -> list[traceback.TracebackException]:
    """Return an exception with its causes, contexts and members, without the contexts that are not of the user's code."""
    found, left = [], [whole]
    while left:
        each = left.pop()
        while each.__context__ is not None and _is_ours(each.__context__):
            each.__context__ = each.__context__.__context__
        found.append(each)
        left += [other for other in (each.__cause__, each.__context__, *(each.exceptions or ())) if other is not None]
    return found


def _is_ours(whole: traceback.TracebackException) -> bool:
    return bool(whole.stack) and all(_is_between(frame.filename) for frame in whole.stack)
