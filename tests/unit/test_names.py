"""What a cell reads of the notebook's names, compared with what Python does with them."""

import ast
import random
import textwrap

import pytest

from raykit.client.names import imported_modules, names_read

NOTEBOOK = {
    "a": 1,
    "b": 2,
    "c": 3,
    "n": 16,
    "count": 41,
    "data": [3, None, 4],
    "rows": [(1, 2), (3, 4)],
    "flag": True,
    "table": {"k": 1},
    "point": [1, 2, 3],
}

CELLS = [
    "count += 1",
    "data = [d for d in data if d is not None]",
    "from math import *\nroot = sqrt(n)",
    'prompt = """\nfrom math import *\n"""\nroot = n * 2',
    "for x in data:\n    count += 1",
    "for a in data:\n    pass\nb = a",
    "for i in ():\n    a = 5\nb = a",
    "while count > 40:\n    count -= 1",
    "while True:\n    a = a + 1\n    if a > 5:\n        break\nelse:\n    b = 1\nc = a + b",
    "if flag:\n    a = 5\nb = a",
    "if not flag:\n    a = 5\nelse:\n    b = 6\nc = a + b",
    "if flag:\n    a = 5\nelse:\n    a = 6\nb = a",
    "del a\nb = 2",
    "a = 9\ndel a\ntry:\n    b = a\nexcept NameError:\n    b = 'gone'",
    "def f():\n    global count\n    count += 1\n    return count\nresult = f() + f()",
    "def f():\n    return helper() + a\ndef helper():\n    return b\nresult = f()",
    "def f():\n    return later\nlater = 7\nresult = f()",
    "def f():\n    return a\nresult = f()\na = 7",
    "f = lambda x=a: x + b\nb = 10\nresult = f()",
    "result = [a * x for x in point if x > b]",
    "result = [y for x in rows for y in x]\nx = count",
    "result = [last := x for x in point]\na = last",
    "result = {k: a for k in point}, {a + k for k in point}, sum(a for _ in point)",
    "def f():\n    return [x for x in point] + [a]\na = 7\nresult = f()",
    "def f():\n    return [a for a in point] + [a]\nresult = f()",
    "if (total := a + b) > 2:\n    result = total",
    "result = flag and (c := 9)\na = c",
    "match rows:\n    case [(p, q), *rest] if p == a:\n        result = q, rest\n    case _:\n        result = b",
    "match table:\n    case {'missing': a}:\n        pass\n    case {'k': k, **others}:\n        result = k, others, a",
    "match count:\n    case 0 | 1:\n        a = 0\n    case other:\n        a = other\nb = a",
    "import contextlib\nwith contextlib.nullcontext(a) as a:\n    b = a\nresult = a + b",
    "import contextlib\nwith contextlib.suppress(ZeroDivisionError):\n    1 / 0\n    a = 5\nresult = a",
    "try:\n    1 / 0\n    a = 5\nexcept ZeroDivisionError as c:\n    b = a\ntry:\n    result = c\nexcept NameError:\n    result = 'gone'",
    "try:\n    a = 5\nexcept ValueError:\n    raise\nelse:\n    b = a\nfinally:\n    c = a",
    "try:\n    model\nexcept NameError:\n    model = a\nresult = model",
    "class A:\n    a = a + 1\n    def get(self):\n        return a, b\n    pairs = [(a, b) for _ in range(1)]\nb = 5\nresult = A().get(), A.a, A.pairs",
    "class A:\n    global count\n    count = 1\nresult = count",
    "class A:\n    x: int = a\n    y = x + b\nresult = A.y",
    "result: int = a",
    "a: int\nresult = a",
    "point[0] = a\ntable['k'] += b\nresult = point, table",
    "a, *b = data\nresult = a, b",
    "result = f'{a + 1:{c}}'",
    "def f(x=a):\n    def g():\n        nonlocal x\n        x += b\n        return x\n    return g()\nresult = f()",
    "import functools\n@functools.cache\ndef f():\n    return a\nresult = f()\na = 2",
    "for a in point:\n    if a == 2:\n        x = 1\n        continue\nresult = x",
    "for i in point:\n    if i == 2:\n        break\n    a = i\nelse:\n    b = 0\nresult = a + b",
    "async def f():\n    return a\nimport asyncio\nresult = asyncio.run(f())\na = 1",
    "result = [(lambda: a + x)() for x in point]",
    "assert flag, a\nresult = count",
    "def f():\n    class A:\n        a = 5\n        pairs = [(a, x) for x in point for _ in range(b)]\n    return A.pairs\nresult = f()",
    "def f():\n    g = lambda: (lambda y=a: y + b)()\n    b = c\n    return g()\nresult = f()",
    "def f(*a, b=b, **c):\n    def g(x=a):\n        return x, b, n\n    return g()\nresult = f(1)",
    "def f():\n    if (last := a) > 5: return b\n    return [last := x for x in point], last\nresult = f()",
    "print_ = a if flag else b\nresult = print_",
]


def _after(cell, names):
    """Return the names that there are after a cell, or its exception."""
    namespace = dict(names)
    try:
        exec(compile(cell, "cell", "exec", dont_inherit=True), namespace)
    except Exception as exc:
        return {"raised": f"{type(exc)} {exc}"}
    return {
        name: value for name, value in namespace.items() if isinstance(value, int | str | list | tuple | dict) and name[:2] != "__"
    }


def _is_the_same(cell, notebook):
    """Run a cell with all names of a notebook, and with those that would travel."""
    read = names_read(ast.parse(cell))
    travel = read.needed | read.guarded | read.wanted
    whole = _after(cell, _copy(notebook))
    ours = _after(cell, {name: value for name, value in _copy(notebook).items() if name in travel})
    return ours.keys() <= whole.keys() and {name: ours.get(name, notebook.get(name)) for name in whole} == whole


def _copy(names):
    return {name: value.copy() if isinstance(value, list | dict) else value for name, value in names.items()}


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_does_with_its_names_what_it_does_with_all(cell):
    assert _is_the_same(cell, NOTEBOOK)


class _Cells:
    """Makes cells of a few names, most of which are read and set in unlike order."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.depth = 0

    def name(self):
        return self.random.choice("abcdef")

    def expression(self):
        name, other = self.name(), self.name()
        made = [name, name, f"{name} + {other}", f"({name} if {other} % 2 else 1)", f"({name} and {other})", "g()", f"C.{name}"]
        made += [
            f"({name} := {other} + 1)",
            f"sum({name} for {name} in range({other} % 3))",
            f"sum([{other} for {name} in range(2)])",
        ]
        made += [f"(lambda {name}={other}: {name} + {self.name()})()", f"({name} < {other} < {self.name()}) + 0"]
        return self.random.choice([*made, f"sum(({name} := x) for x in range({other} % 3))"])

    def block(self):
        self.depth += 1
        count = self.random.randint(1, 3 if self.depth < 4 else 1)
        made = "\n".join(self.statement() for _ in range(count))
        self.depth -= 1
        return textwrap.indent(made, "    ")

    def statement(self):
        name, value = self.name(), self.expression()
        simple = [
            f"{name} = {value}",
            f"{name} += {value}",
            f"{name}, {self.name()} = {value}, 3",
            f"del {name}",
            f"{name}: int = 1",
        ]
        if self.depth > 3:
            return self.random.choice(simple)
        block = self.block
        return self.random.choice(
            [
                *(lambda each=each: each for each in simple),
                lambda: f"if {value} % 2:\n{block()}",
                lambda: f"if {value} % 2:\n{block()}\nelse:\n{block()}",
                lambda: (
                    f"for {name} in range({value} % 3):\n{block()}\n    if {self.name()} > 2: {self.random.choice(['break', 'continue'])}\n{block()}"
                ),
                lambda: f"for _ in range(2):\n{block()}\nelse:\n{block()}",
                lambda: f"try:\n{block()}\n    1 / 0\nexcept ZeroDivisionError as {name}:\n{block()}",
                lambda: f"try:\n{block()}\nexcept NameError:\n{block()}",
                lambda: f"try:\n{block()}\nfinally:\n{block()}",
                lambda: f"with suppress(ZeroDivisionError):\n{block()}\n    1 / ({value} % 2)\n{block()}",
                lambda: (
                    f"match {value} % 3:\n    case 0:\n{textwrap.indent(block(), '    ')}\n    case {name} if {self.expression()}:\n{textwrap.indent(block(), '    ')}"
                ),
                lambda: f"def g():\n    global {name}\n{block()}\n    return {self.expression()}",
                lambda: f"def g():\n    return {value}",
                lambda: f"class C:\n{block()}\n    def m(self): return {self.expression()}",
                lambda: "C().m()",
            ]
        )()


@pytest.mark.parametrize("seed", range(0, 600, 200))
def test_cells_made_at_random_do_with_their_names_what_they_do_with_all(seed):
    from contextlib import suppress

    notebook = {**dict(zip("abcdef", range(1, 7), strict=True)), "suppress": suppress}
    compared = 0
    for each in range(seed, seed + 200):
        made = _Cells(each)
        cell = "\n".join(made.statement() for _ in range(5))
        try:
            compile(cell, "cell", "exec", dont_inherit=True)
        except SyntaxError:
            continue
        compared += 1
        assert _is_the_same(cell, notebook), cell
    assert compared > 20


@pytest.mark.parametrize(
    ("cell", "needed", "wanted"),
    [
        ("data = load()\nuse(data)", {"load", "use"}, set()),  # an earlier value of data stays where it is
        ("def main():\n    use(data)\ndata = 1\nmain()", {"use"}, set()),
        ("with open(p) as f:\n    data = f.read()\nuse(data)", {"open", "p", "use"}, set()),
        ("if a:\n    b = 1\nuse(b)", {"a", "use"}, {"b"}),
        ("try:\n    model\nexcept NameError:\n    model = 1", {"NameError"}, {"model"}),
        ("try:\n    log(1)\nexcept Exception:\n    pass", {"Exception"}, set()),  # its absence is handled
        ("while True:\n    if a:\n        break\n    x += 1", {"a"}, {"x"}),
        ("if a:\n    raise SystemExit\nx += 1", {"a", "SystemExit"}, {"x"}),
        ("from math import *\nx = sqrt(n)", set(), {"sqrt", "n"}),
        ("x = n\nfrom math import *", {"n"}, set()),
        ("lock.acquire()\nlock = None", {"lock"}, set()),
        ("def f[T](x: T) -> T:\n    return x" if hasattr(ast, "TypeAlias") else "def f(x):\n    return x", set(), set()),
        ("from __future__ import annotations\ndef f(x: Later): ...", set(), set()),
    ],
)
def test_only_what_may_be_read_travels_and_only_what_is_read_has_to(cell, needed, wanted):
    read = names_read(ast.parse(cell))
    assert (set(read.needed), set(read.wanted)) == (needed, wanted)


@pytest.mark.parametrize("cell", [" + ".join(["a"] * 900), "if a == 0:\n    pass\n" + "elif a == 1:\n    b = c\n" * 90])
def test_a_long_sum_and_a_long_chain_are_no_deeper_than_python_takes(cell):
    assert "a" in names_read(ast.parse(cell)).needed


def test_modules_that_a_cell_imports_are_found_wherever_the_import_stands():
    cell = 'import a.b, c\ndef f():\n    from d.e import x\n"""\nimport not_this\n"""\nfrom . import own'
    assert imported_modules(ast.parse(cell)) == {"a", "c", "d"}
