"""Cells and functions in a process of a run: their names are those of ``__main__``, as in a kernel."""

import subprocess
import sys
import textwrap

import pytest

NOTEBOOK = """
import sys
import textwrap
from types import ModuleType
from raykit.client.capture import capture_cell, pack
from raykit.wire.payload import FunctionWork

notebook = sys.modules["__main__"] = ModuleType("__main__")  # of an own kernel
names = vars(notebook)
exec(compile(open(sys.argv[1]).read(), "Cell In[1]", "exec"), names)
work = names["work"]
if isinstance(work, str):
    payload = capture_cell(work, names, title="Cell In[2]")
else:
    payload = pack(work if isinstance(work, list) else FunctionWork(function=work), {"work": work}, {})
open(sys.argv[2], "wb").write(payload.to_bytes())
"""

RUN = """
import sys
from raykit.wire.main_module import become_main
from raykit.wire.payload import Payload

payload = Payload.from_bytes(open(sys.argv[1], "rb").read())
become_main()
work = payload.open()
made = work[0]() if isinstance(work, list) else work.run()["result"]
print(repr(made))
"""


@pytest.fixture
def ran(tmp_path):
    """Run a notebook's first cell in one process, and what it calls ``work`` in another, as a run does."""

    def run(cell):
        (tmp_path / "cell.py").write_text(textwrap.dedent(cell))
        here, there = [sys.executable, "-c", NOTEBOOK], [sys.executable, "-c", RUN]
        packed = subprocess.run([*here, tmp_path / "cell.py", tmp_path / "payload"], capture_output=True, text=True, check=False)
        assert packed.returncode == 0, packed.stderr
        done = subprocess.run([*there, tmp_path / "payload"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


def test_plain_pickle_finds_the_classes_and_functions_of_the_cell_itself(ran):
    cell = '''
    work = """
    import copy, enum, io, multiprocessing, pickle, dataclasses, typing
    import torch
    class Net(torch.nn.Linear):
        pass
    class Colour(enum.Enum):
        RED = 1
    @dataclasses.dataclass
    class Point:
        x: int
        other: "Point | None" = None
    def square(x):
        return x * x
    file = io.BytesIO()
    torch.save(Net(2, 1), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        squares = pool.map(square, range(4))
    same = pickle.loads(pickle.dumps(Colour.RED)) is Colour.RED, pickle.loads(pickle.dumps(Point(1))) == Point(1)
    result = type(loaded) is Net, squares, same, typing.get_type_hints(Point)["other"] == (Point | None), __name__
    """
    work = __import__("textwrap").dedent(work)
    '''
    assert ran(cell) == "(True, [0, 1, 4, 9], (True, True), True, '__main__')"


def test_it_finds_those_of_other_cells_that_a_function_brought_along(ran):
    cell = """
    import enum, functools, multiprocessing, pickle
    class Colour(enum.Enum):
        RED = 1
    class Node:
        class Inner:
            pass
        def __init__(self, colour):
            self.colour = colour
    def loud(function):
        @functools.wraps(function)
        def call(*args):
            return function(*args)
        return call
    @loud
    def twice(x):
        return 2 * x
    def square(x):
        return x * x
    nodes = [Node(Colour.RED)]
    callbacks = {"square": square}
    def work():
        again = pickle.loads(pickle.dumps(nodes))
        with multiprocessing.get_context("fork").Pool(1) as pool:
            mapped = pool.map(callbacks["square"], [3]), pool.map(twice, [3])
        inner = pickle.loads(pickle.dumps(Node.Inner())).__class__ is Node.Inner
        return type(again[0]) is Node, again[0].colour is Colour.RED, mapped, inner, pickle.loads(pickle.dumps(work)) is work
    """
    assert ran(cell) == "(True, True, ([9], [6]), True, True)"


SHARED = """
count = 0
def add(n=1):
    global count
    count += n
def get():
    return count
"""


@pytest.mark.parametrize(
    ("work", "made"),
    [
        ("def work():\n    add()\n    add()\n    global count\n    count *= 10\n    return get(), count", "(20, 20)"),
        ('work = "count = 5\\nadd()\\nresult = count, get()"', "(6, 6)"),
    ],
)
def test_functions_of_all_cells_share_their_globals_as_in_a_notebook(ran, work, made):
    assert ran(SHARED + work) == made


def test_a_stage_is_found_too_and_what_it_pickles_is_pickled_by_value_for_others(ran):
    cell = """
    import pickle
    class Box:
        pass
    def stage():
        import cloudpickle
        here = pickle.loads(pickle.dumps(Box())), pickle.loads(pickle.dumps(stage)) is stage
        return type(here[0]) is Box, here[1], b"_make_skeleton_class" in cloudpickle.dumps(Box())
    work = [stage]
    """
    assert ran(cell) == "(True, True, True)"


def test_a_kernel_keeps_its_own_main(tmp_path):
    from raykit.client.capture import capture_cell

    before = sys.modules["__main__"]
    assert capture_cell("x = __name__", {}, title="Cell In[1]").open().run()["x"] == "__main__"
    assert sys.modules["__main__"] is before
