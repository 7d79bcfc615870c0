"""The scopes of Python inside a cell: which names of the module a function reads and sets, whatever lies in it."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
Scope = Function | Comprehension | ast.ClassDef


def type_parameters(node: ast.AST) -> frozenset[str]:
    """Return the names of a definition's type parameters."""
    return frozenset(each.name for each in getattr(node, "type_params", ()))


def targets(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Return the names that assignment targets bind."""
    for node in nodes:
        yield from (each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store))


def declared_global(body: Iterable[ast.stmt]) -> Iterator[str]:
    """Return the names that a body declares as global."""
    for node in _own_nodes(body):
        if isinstance(node, ast.Global):
            yield from node.names


SCOPES = (
    *(ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef),
    *(ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp),
)


def _own_nodes(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Return the nodes of a scope; of a function or a class inside it only the node itself."""
    left = list(nodes)
    while left:
        node = left.pop()
        yield node
        if not isinstance(node, SCOPES):
            left.extend(ast.iter_child_nodes(node))


def names_of_function(node: Function) -> tuple[set[str], set[str]]:
    """Return the names of the module that a function's body reads, and those that it sets by ``global``."""
    scope = _Scope(node)
    return scope.free | scope.reads_global, scope.stores_global


class _Scope:
    """The names of a function, or of a class or a comprehension in one. ``free`` are those that the scopes around may have."""

    def __init__(self, node: Scope) -> None:
        nodes = list(_own_nodes(_body(node)))
        self.reads_global: set[str] = set()
        self.stores_global: set[str] = set()
        declared = {name for each in nodes if isinstance(each, ast.Global) for name in each.names}
        outer = {name for each in nodes if isinstance(each, ast.Nonlocal) for name in each.names}
        stored, read = set(_bound_by(node, nodes)), set(_read_by(nodes))
        own = stored - declared - outer
        self.reads_global |= declared & read
        self.stores_global |= declared & stored
        self.free = read - own - declared
        inside = set() if isinstance(node, ast.ClassDef) else own  # a class's names are not those of its methods
        for each in nodes:
            if isinstance(each, SCOPES):
                self._take(each, own, inside)

    def _take(self, node: Scope, own: set[str], inside: set[str]) -> None:
        """Add what a scope inside this one reads, and what is read where it is defined."""
        scope = _Scope(node)
        self.reads_global |= scope.reads_global
        self.stores_global |= scope.stores_global
        self.free |= scope.free - inside
        around = list(_own_nodes(_at_definition(node)))
        self.free |= set(_read_by(around)) - own
        for each in around:
            if isinstance(each, SCOPES):
                self._take(each, own, inside)


def _body(node: Scope) -> list[ast.AST]:
    match node:
        case ast.Lambda():
            return [node.body]
        case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
            first, *rest = node.generators
            made = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
            return [first.target, *first.ifs, *rest, *made]
        case _:
            return list(node.body)


def _read_by(nodes: Iterable[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Store):
            yield node.id
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def _bound_by(node: Scope, nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Return the names that a scope binds, or declares to bind elsewhere."""
    yield from type_parameters(node)
    if isinstance(node, Comprehension):
        yield from targets(each.target for each in node.generators)
        return
    if not isinstance(node, ast.ClassDef):
        yield from _parameters(node.args)
    for each in nodes:
        if isinstance(each, ast.Name) and not isinstance(each.ctx, ast.Load):
            yield each.id
        if isinstance(each, Comprehension):  # its `:=` binds here
            yield from (part.target.id for part in ast.walk(each) if isinstance(part, ast.NamedExpr))
        yield from _bound_otherwise(each)


def _at_definition(node: Scope) -> Iterator[ast.AST]:
    """Return the expressions of a definition that are evaluated where it stands."""
    if isinstance(node, Comprehension):
        yield node.generators[0].iter
        return
    if isinstance(node, ast.ClassDef):
        yield from (*node.decorator_list, *node.bases, *node.keywords)
        return
    arguments = node.args
    yield from arguments.defaults
    yield from (each for each in arguments.kw_defaults if each is not None)
    if not isinstance(node, ast.Lambda):
        yield from node.decorator_list
        every = (*arguments.posonlyargs, *arguments.args, arguments.vararg, *arguments.kwonlyargs, arguments.kwarg)
        yield from (each.annotation for each in every if each is not None and each.annotation is not None)
        yield from () if node.returns is None else (node.returns,)


def _parameters(arguments: ast.arguments) -> Iterator[str]:
    every = (*arguments.posonlyargs, *arguments.args, arguments.vararg, *arguments.kwonlyargs, arguments.kwarg)
    yield from (each.arg for each in every if each is not None)


def _bound_otherwise(node: ast.AST) -> Iterator[str]:
    """Return the names that a node binds without an ``ast.Name``."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            yield node.name
        case ast.Import():
            yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
        case ast.ImportFrom():
            yield from (alias.asname or alias.name for alias in node.names)
        case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
            yield name
        case ast.MatchMapping(rest=str(name)):
            yield name
