from types import SimpleNamespace

import pytest

from raykit.errors import CellError, OptionError
from raykit.jupyter import cells
from raykit.spec import TrainSpec
from raykit.spec.lines import Viewing
from raykit.spec.parse import parse
from raykit.spec.training import interval
from raykit.wire.loop import call_loop, check_cell, check_loop
from raykit.wire.payload import CellWork, FunctionWork


def test_the_engine_is_one_of_two():
    assert parse(TrainSpec, "--engine ray-train", command="%%ray train").engine == "ray-train"
    assert TrainSpec().engine == "raykit"
    with pytest.raises(OptionError, match="raykit and ray-train"):
        parse(TrainSpec, "--engine horovod", command="%%ray train")


@pytest.mark.parametrize(
    "text",
    [
        "def train_loop_per_worker(config): pass",
        "def train_loop_per_worker(): pass",
        "if True:\n    def train_loop_per_worker(config, more=1): pass",
        "from mine import loop as train_loop_per_worker",
        "train_loop_per_worker = mine",
        "train_loop_per_worker = made_by(3)",
        "from mine import *",
    ],
)
def test_a_cell_that_defines_a_loop_is_taken(text):
    check_cell(text, {"mine": lambda config: None})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x = 1", "defines no train_loop_per_worker"),
        ("def train_loop(config): pass", "defines no train_loop_per_worker"),
        ("def train_loop_per_worker(model, data): pass", "asks for 2 arguments"),
        ("train_loop_per_worker = {'lr': 0.1}", "cannot be called"),
        ("train_loop_per_worker = mine", "train_loop_per_worker is 5, which cannot be called"),
    ],
)
def test_a_cell_without_a_loop_that_ray_train_could_call_is_refused(text, problem):
    with pytest.raises(CellError, match=problem) as caught:
        check_cell(text, {"mine": 5})
    assert "Define def train_loop_per_worker(config)" in str(caught.value)


def test_a_loop_gets_its_config_where_it_asks_for_one():
    got = []
    call_loop(FunctionWork(function=got.append, args=({"lr": 1},)))
    call_loop(FunctionWork(function=got.append))
    call_loop(FunctionWork(function=lambda: got.append("nothing"), args=({"lr": 1},)))
    call_loop(FunctionWork(function=lambda config=None: got.append(config), args=({"lr": 1},)))
    assert got == [{"lr": 1}, {}, "nothing", None]


def test_the_config_of_a_cell_is_its_own():
    text = "def train_loop_per_worker(config): got.append(config)\ntrain_loop_config = {'lr': 2}"
    got = []
    call_loop(CellWork(text=text, filename="cell", names={"got": got}))
    assert got == [{"lr": 2}]
    with pytest.raises(CellError, match="defines no"):
        call_loop(CellWork(text="from math import *", filename="cell", names={}))


def test_a_loop_that_is_no_function_is_refused():
    with pytest.raises(CellError, match="cannot be called"):
        check_loop("loop")


def test_the_magic_refuses_a_cell_without_a_loop_and_options_of_the_other_engine_before_it_looks_for_a_cluster():
    shell = SimpleNamespace(user_ns={}, execution_count=3)
    with pytest.raises(CellError, match="defines no train_loop_per_worker"):
        cells.train_cell(shell, "x = 1", TrainSpec(engine="ray-train"), Viewing())
    with pytest.raises(OptionError, match="--checkpoint-every has no effect"):
        cells.train_cell(shell, "x = 1", TrainSpec(engine="ray-train", checkpoint_every=interval(5)), Viewing())
