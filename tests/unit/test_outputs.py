import contextlib
import io
import types

import pytest

from raykit.client.outputs import bound_names, check_outputs
from raykit.errors import CellError

SETS = [
    "a = 1",
    "a: int = 1",
    "a += 1",
    "(b, *a), c = (1, 2), 3",
    "import a.b",
    "import b as a",
    "from b import c as a",
    "def a(): pass",
    "async def a(): pass",
    "class a: pass",
    "for a in (): pass",
    "with open('x') as (b, a): pass",
    "try: pass\nexcept ValueError as a: pass",
    "print(a := 1)",
    "[a := b for b in (1,)]",
    "match b:\n    case {'k': a}: pass",
    "def f():\n    global a\n    a = 1",
    "if b:\n    a = 1",
    "await b\na = 1",
]
DO_NOT = ["b.a = 1", "b['a'] = 1", "def f():\n    a = 1", "class B:\n    a = 1", "[a for a in (1,)]", "f(a=1)", "lambda: (a := 1)"]


@pytest.mark.parametrize("text", SETS)
def test_a_name_that_a_cell_sets_in_any_way_can_be_an_output(text):
    assert "a" in bound_names(text)


@pytest.mark.parametrize("text", DO_NOT)
def test_a_name_that_is_set_within_something_is_no_output(text):
    assert "a" not in bound_names(text)


@pytest.mark.parametrize("text", ["from os.path import *", "exec('a = 1')", "globals()['a'] = 1", "def f():\n    vars().update(b)"])
def test_a_cell_that_may_set_any_name_is_not_refused(text):
    assert bound_names(text) is None
    check_outputs(text, ["modle"], {})


def test_a_mistyped_output_is_refused_with_the_name_that_was_meant():
    with pytest.raises(CellError, match=r"-o modle: the cell sets no such name.\nDid you mean model\?"):
        check_outputs("model = 1", ["model", "modle"], {"modle": "the notebook's, which does not travel"})


def test_what_travels_with_a_cell_can_come_back():
    check_outputs("rows.append(1)", ["rows"], {"rows": []})
    check_outputs("other.append(1)", ["rows"], {"rows": []}, inputs=["rows"])
    notebook = types.ModuleType("__main__")
    exec("def load():\n    global rows\n    rows = 1", vars(notebook))
    check_outputs("load()", ["rows"], vars(notebook))


def test_the_names_of_a_cell_are_those_that_python_has_after_it():
    text = "import math as m\n[y := x for x in (1, 2)]\nfor z in (3,): pass\ndef f(): pass\nwith c() as w: pass"
    namespace = {"c": lambda: contextlib.closing(io.StringIO())}
    exec(text, namespace)
    assert bound_names(text) == namespace.keys() - {"c", "__builtins__"}
