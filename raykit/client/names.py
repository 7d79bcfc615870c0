"""Which names of the notebook a cell's text reads: a definite-assignment analysis over its syntax tree.

A statement is followed in the order in which Python executes it. At each point the analysis knows which names the cell has
certainly set or deleted since it began (of these the notebook's value is not seen any more), and which it may have set. The
body of a function is looked at where its name is used, since only a call runs it.
"""

from __future__ import annotations

import ast
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from raykit.client.scopes import Comprehension, declared_global, names_of_function, targets, type_parameters

Key = str | tuple[int, str]
"""A name of the cell, or one of a class body with the number of that body."""

OF_EVERY_MODULE = frozenset(
    ("__name__", "__file__", "__builtins__", "__annotations__", "__class__", "__doc__", "__spec__", "__loader__", "__package__")
)
OF_EVERY_CLASS = frozenset(("__module__", "__qualname__", "__annotations__", "__firstlineno__"))
NAME_ERRORS = frozenset(("NameError", "Exception", "BaseException"))
MAX_DEPTH = 20_000  # of calls: Python compiles a sum of some thousand terms, whose tree is as deep
SWALLOWERS = frozenset(("suppress", "raises", "assertRaises", "ExitStack", "AsyncExitStack"))
"""Context managers that end an exception of their body, so that the rest of the body may not have run."""


@dataclass(frozen=True, slots=True)
class Names:
    """What a cell reads of the notebook.

    ``needed`` are names without whose value the cell cannot run. ``guarded`` are those whose absence it handles, by
    ``except NameError``. ``wanted`` are those that it may read before it sets them, or may find in a module by ``import *``.
    """

    needed: frozenset[str]
    guarded: frozenset[str]
    wanted: frozenset[str]


def names_read(tree: ast.Module) -> Names:
    """Return what a cell reads of the notebook's names."""
    walk = _Walk()
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, MAX_DEPTH))
    try:
        walk.block(tree.body)
        walk.end()
    finally:
        sys.setrecursionlimit(limit)
    found = walk.found
    needed = found.certain | (found.unsure - found.stored)
    if walk.has_star:
        needed -= found.unsure - found.certain
    guarded = found.guarded - found.stored - needed
    wanted = (found.unsure | found.guarded) - needed - guarded
    return Names(*(frozenset(each - OF_EVERY_MODULE) for each in (needed, guarded, wanted)))


def imported_modules(tree: ast.Module) -> set[str]:
    """Return the top names of the modules that a cell imports, in its functions too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {each.name.partition(".")[0] for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


@dataclass(slots=True)
class _Flow:
    """What is known at a point of the cell; a point that is never reached is ``dead``."""

    surely: set[Key] = field(default_factory=set)
    maybe: set[Key] = field(default_factory=set)
    star: bool = False
    """Whether an ``import *`` may have set any name before."""
    dead: bool = False
    partly: bool = False
    """Whether a way to this point has ended before it, so that what stands here may not be executed."""

    def copy(self) -> _Flow:
        return _Flow(set(self.surely), set(self.maybe), self.star, self.dead, self.partly)


def _joined(flows: Iterable[_Flow]) -> _Flow:
    """Return what is known where several ways meet."""
    every = list(flows)
    alive = [flow for flow in every if not flow.dead]
    return _Flow(
        surely=set.intersection(*(flow.surely for flow in alive)) if alive else set(),
        maybe=set.union(*(flow.maybe for flow in every)),  # of dead ones too: a `continue` comes round again
        star=any(flow.star for flow in every),
        dead=not alive,
        partly=len(alive) < len(every) or any(flow.partly for flow in alive),
    )


@dataclass(slots=True)
class _Found:
    """Reads of the notebook's value: of each run, of some runs, and under a handler for NameError; and all that is set."""

    certain: set[str] = field(default_factory=set)
    unsure: set[str] = field(default_factory=set)
    guarded: set[str] = field(default_factory=set)
    stored: set[str] = field(default_factory=set)


class _Walk:
    """Follows the statements of a cell."""

    def __init__(self) -> None:
        self.found = _Found()
        self.has_star = False
        self._flow = _Flow()
        self._breaks: list[list[_Flow]] = []
        self._classes = itertools.count()
        self._class: int | None = None
        self._class_globals: frozenset[str] = frozenset()
        self._hidden: list[frozenset[str]] = []  # targets of the comprehensions around, type parameters
        self._num_unsure = self._num_guarded = 0
        self._deferred: dict[str, set[str]] = {}
        self._methods: set[str] = set()  # what those of the class around read
        self._following: set[str] = set()
        self._defers_annotations = False

    def end(self) -> None:
        """Look at the functions that nothing of the cell calls: who takes them from there does."""
        self._flow.dead = False
        for name in list(self._deferred):
            self._follow(name)

    def block(self, body: Iterable[ast.stmt]) -> None:
        for node in body:
            self._statement(node)

    # Names

    def _read(self, name: str, *, sure: bool = True) -> None:
        if any(name in hidden for hidden in self._hidden):
            return
        if self._class is not None and name not in self._class_globals:
            if name in OF_EVERY_CLASS or (self._class, name) in self._flow.surely:
                return
            sure = sure and (self._class, name) not in self._flow.maybe
        if name not in self._flow.surely and not self._flow.dead:
            if self._num_guarded:
                self.found.guarded.add(name)
            elif sure and not self._is_unsure and name not in self._flow.maybe:
                self.found.certain.add(name)
            else:
                self.found.unsure.add(name)
        self._follow(name)

    @property
    def _is_unsure(self) -> bool:
        return bool(self._num_unsure) or self._flow.partly or self._flow.star

    def _store(self, name: str) -> None:
        if self._class is not None and name not in self._class_globals:
            self._mark((self._class, name))
        else:
            self._mark(name)
            self.found.stored.add(name)

    def _mark(self, key: Key) -> None:
        self._flow.surely.add(key)
        self._flow.maybe.add(key)

    def _follow(self, name: str) -> None:
        """Look at what the functions of this name read, as a call from here would."""
        if name not in self._deferred or name in self._following:
            return
        self._following.add(name)
        around = self._class, self._hidden
        self._class, self._hidden = None, []
        for each in sorted(self._deferred[name]):
            self._read(each, sure=False)
        self._class, self._hidden = around
        self._following.discard(name)

    @contextmanager
    def _unsure(self) -> Iterator[None]:
        """What is in this block may not be executed."""
        self._num_unsure += 1
        try:
            yield
        finally:
            self._num_unsure -= 1

    # Statements

    def _statement(self, node: ast.stmt) -> None:  # noqa: C901, PLR0912, PLR0915  (a case a kind)
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                self._function(node)
            case ast.ClassDef():
                self._class_body(node)
            case ast.Assign():
                self._expression(node.value)
                for target in node.targets:
                    self._target(target)
            case ast.AugAssign():
                if isinstance(node.target, ast.Name):
                    self._read(node.target.id)
                else:
                    self._target(node.target)
                self._expression(node.value)
                if isinstance(node.target, ast.Name):
                    self._store(node.target.id)
            case ast.AnnAssign():
                self._annotated(node)
            case ast.Delete():
                for target in node.targets:
                    self._delete(target)
            case ast.For() | ast.AsyncFor():
                self._expression(node.iter)
                self._loop(node.body, node.orelse, target=node.target)
            case ast.While():
                self._expression(node.test)
                is_endless = isinstance(node.test, ast.Constant) and bool(node.test.value)
                self._loop(node.body, node.orelse, is_endless=is_endless)
            case ast.If():
                self._expression(node.test)
                self._branches(lambda: self.block(node.body), lambda: self.block(node.orelse))
            case ast.With() | ast.AsyncWith():
                self._with(node)
            case ast.Match():
                self._match(node)
            case ast.Try() | ast.TryStar():
                self._try(node)
            case ast.Import():
                for alias in node.names:
                    self._store(alias.asname or alias.name.partition(".")[0])
            case ast.ImportFrom():
                self._import_from(node)
            case ast.Raise() | ast.Return():
                self._children(node)
                self._flow.dead = True
            case ast.Assert():
                self._expression(node.test)
                with self._unsure():
                    self._expression(node.msg)
            case ast.Break():
                self._breaks[-1].append(self._flow.copy())
                self._flow.dead = True
            case ast.Continue():
                self._flow.dead = True
            case ast.Global() | ast.Nonlocal():
                pass
            case _ if hasattr(ast, "TypeAlias") and isinstance(node, ast.TypeAlias):
                with self._unsure():
                    self._children(node.value)  # looked at when it is asked for
                self._target(node.name)
            case _:
                self._children(node)

    def _children(self, node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            self._expression(child)

    def _import_from(self, node: ast.ImportFrom) -> None:
        if node.module == "__future__":
            self._defers_annotations |= any(alias.name == "annotations" for alias in node.names)
        for alias in node.names:
            if alias.name == "*":
                self.has_star = self._flow.star = True
            else:
                self._store(alias.asname or alias.name)

    def _annotated(self, node: ast.AnnAssign) -> None:
        self._expression(node.value)
        if node.value is not None or not isinstance(node.target, ast.Name):
            self._target(node.target)
        if node.simple:
            self._annotation(node.annotation)

    def _annotation(self, node: ast.expr | None) -> None:
        if not self._defers_annotations:
            self._expression(node)

    def _target(self, node: ast.AST) -> None:
        match node:
            case ast.Name():
                self._store(node.id)
            case ast.Tuple() | ast.List():
                for each in node.elts:
                    self._target(each)
            case ast.Starred():
                self._target(node.value)
            case _:
                self._children(node)  # of an attribute or an item the object is read

    def _delete(self, node: ast.expr) -> None:
        if isinstance(node, ast.Name):
            self._read(node.id)
            self._store(node.id)
        elif isinstance(node, ast.Tuple | ast.List):
            for each in node.elts:
                self._delete(each)
        else:
            self._children(node)

    def _loop(
        self, body: list[ast.stmt], orelse: list[ast.stmt], *, target: ast.expr | None = None, is_endless: bool = False
    ) -> None:
        """Follow the first round: in later ones no less is set."""
        before = self._flow.copy()
        self._breaks.append([])
        self._num_unsure += not is_endless
        if target is not None:
            self._target(target)
        self.block(body)
        self._num_unsure -= not is_endless
        after, breaks = self._flow, self._breaks.pop()
        self._flow = _joined((before, after))
        self._flow.dead = is_endless
        if not is_endless:
            with self._unsure():
                self.block(orelse)
        self._flow = _joined((self._flow, *breaks))
        self._flow.partly = before.partly

    def _branches(self, *ways: Callable[[], None]) -> None:
        before, ends = self._flow, []
        for way in ways:
            self._flow = before.copy()
            with self._unsure():
                way()
            ends.append(self._flow)
        self._flow = _joined(ends)

    def _with(self, node: ast.With | ast.AsyncWith) -> None:
        swallows = False
        for item in node.items:
            self._expression(item.context_expr)
            if item.optional_vars is not None:
                self._target(item.optional_vars)
            swallows |= _callee(item.context_expr) in SWALLOWERS
        before = self._flow.copy()
        with self._unsure() if swallows else _nothing():
            self.block(node.body)
        if swallows:
            ended = self._flow
            before.maybe |= ended.maybe
            self._flow = _joined((before, ended))

    def _match(self, node: ast.Match) -> None:
        self._expression(node.subject)
        ends = []
        for case in node.cases:
            with self._unsure():
                before = self._flow.copy()
                self._pattern(case.pattern)
                if case.guard is not None:
                    self._expression(case.guard)
                matched = self._flow.copy()
                self.block(case.body)
                ends.append(self._flow)
            is_last = case.guard is None and _is_irrefutable(case.pattern)
            before.maybe |= matched.maybe  # a pattern that failed may have bound some of its names
            before.dead = before.dead or is_last
            self._flow = before
        self._flow = _joined((*ends, self._flow))

    def _pattern(self, node: ast.pattern) -> None:
        if isinstance(node, ast.MatchOr):
            before, ends = self._flow, []
            for each in node.patterns:
                self._flow = before.copy()
                self._pattern(each)
                ends.append(self._flow)
            self._flow = _joined(ends)
            return
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.pattern):
                self._pattern(child)
            else:
                self._expression(child)
        name = getattr(node, "rest", None) if isinstance(node, ast.MatchMapping) else getattr(node, "name", None)
        if name:
            self._store(name)

    def _try(self, node: ast.Try | ast.TryStar) -> None:
        before = self._flow.copy()
        catches_name_error = any(_catches_name_error(each) for each in node.handlers)
        self._num_guarded += catches_name_error
        self.block(node.body)
        self._num_guarded -= catches_name_error
        broken = before.copy()  # at the first line of a handler any part of the body may have run
        broken.maybe |= self._flow.maybe
        broken.star |= self._flow.star
        with self._unsure() if node.handlers else _nothing():
            self.block(node.orelse)
        ends = [self._flow]
        for handler in node.handlers:
            self._flow = broken.copy()
            with self._unsure():
                self._expression(handler.type)
                if handler.name:
                    self._store(handler.name)  # and it is deleted at the end: neither way is the notebook's seen again
                self.block(handler.body)
            ends.append(self._flow)
        after = _joined(ends)
        if node.finalbody:
            at_worst = broken
            for end in ends:
                at_worst.maybe |= end.maybe
            had, self._flow = set(at_worst.surely), at_worst
            self.block(node.finalbody)
            is_dead = self._flow.dead or after.dead
            gained = self._flow.surely - had
            after.surely |= gained
            after.maybe |= self._flow.maybe
            after.star |= self._flow.star
            after.dead = is_dead
        self._flow = after

    # Functions and classes

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._children_of(node.decorator_list)
        self._defaults(node.args)
        self._hidden.append(type_parameters(node))
        arguments = node.args
        for each in (*arguments.posonlyargs, *arguments.args, arguments.vararg, *arguments.kwonlyargs, arguments.kwarg):
            self._annotation(None if each is None else each.annotation)
        self._annotation(node.returns)
        self._hidden.pop()
        reads, stores = names_of_function(node)
        self._set_by_function(stores)
        self._store(node.name)
        if self._class is None:
            self._deferred.setdefault(node.name, set()).update(reads)
        else:
            self._methods |= reads
        if node.decorator_list:  # which may call it
            self._follow(node.name)

    def _set_by_function(self, stores: set[str]) -> None:
        self._flow.maybe |= stores
        self.found.stored |= stores

    def _children_of(self, nodes: Iterable[ast.AST]) -> None:
        for node in nodes:
            self._expression(node)

    def _defaults(self, arguments: ast.arguments) -> None:
        self._children_of(arguments.defaults)
        self._children_of(each for each in arguments.kw_defaults if each is not None)

    def _class_body(self, node: ast.ClassDef) -> None:
        self._children_of(node.decorator_list)
        self._hidden.append(type_parameters(node))
        self._children_of([*node.bases, *node.keywords])
        around = self._class, self._class_globals, self._methods
        self._class, self._methods = next(self._classes), set()
        self._class_globals = frozenset(declared_global(node.body))
        self.block(node.body)
        methods = self._methods - type_parameters(node)
        self._class, self._class_globals, self._methods = around
        self._hidden.pop()
        self._store(node.name)
        if self._class is None:
            self._deferred.setdefault(node.name, set()).update(methods)
        else:
            self._methods |= methods
        if node.decorator_list:
            self._follow(node.name)

    # Expressions

    def _expression(self, node: ast.AST | None) -> None:  # noqa: C901  (a case a kind)
        match node:
            case None:
                pass
            case ast.Name():
                self._read(node.id)
            case ast.NamedExpr():
                self._expression(node.value)
                self._target(node.target)
            case ast.BoolOp():
                first, *rest = node.values
                self._expression(first)
                self._perhaps(rest)
            case ast.Compare():
                self._expression(node.left)
                self._expression(node.comparators[0])
                self._perhaps(node.comparators[1:])
            case ast.IfExp():
                self._expression(node.test)
                self._branches(lambda: self._expression(node.body), lambda: self._expression(node.orelse))
            case ast.Dict():
                for key, value in zip(node.keys, node.values, strict=True):
                    self._expression(key)
                    self._expression(value)
            case ast.Lambda():
                self._defaults(node.args)
                reads, stores = names_of_function(node)
                self._set_by_function(stores)
                around, self._class = self._class, None
                for each in sorted(reads):
                    self._read(each, sure=False)
                self._class = around
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                self._comprehension(node)
            case _:
                self._children(node)

    def _perhaps(self, nodes: Iterable[ast.AST]) -> None:
        """Read parts of an expression that may not be evaluated."""
        before = self._flow.copy()
        with self._unsure():
            self._children_of(nodes)
        before.maybe |= self._flow.maybe
        self._flow = before

    def _comprehension(self, node: Comprehension) -> None:
        first, *rest = node.generators
        self._expression(first.iter)
        around, self._class = self._class, None
        self._hidden.append(frozenset(targets(each.target for each in node.generators)))
        before = self._flow.copy()
        with self._unsure():
            self._target_parts(first.target)
            self._children_of(first.ifs)
            for each in rest:
                self._expression(each.iter)
                self._target_parts(each.target)
                self._children_of(each.ifs)
            self._children_of([node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt])
        before.maybe |= self._flow.maybe
        self._flow, self._class = before, around
        self._hidden.pop()

    def _target_parts(self, node: ast.AST) -> None:
        """Read the objects whose attributes or items a comprehension's target sets."""
        if isinstance(node, ast.Tuple | ast.List):
            for each in node.elts:
                self._target_parts(each)
        elif not isinstance(node, ast.Name):
            self._children(node)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _callee(node: ast.expr) -> str:
    """Return the last part of the name of what an expression calls, or ``""``."""
    called = node.func if isinstance(node, ast.Call) else None
    return called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""


def _is_irrefutable(node: ast.pattern) -> bool:
    if isinstance(node, ast.MatchOr):
        return any(map(_is_irrefutable, node.patterns))
    return isinstance(node, ast.MatchAs) and (node.pattern is None or _is_irrefutable(node.pattern))


def _catches_name_error(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is None or (isinstance(kind, ast.Name) and kind.id in NAME_ERRORS) for kind in kinds)
