"""One vocabulary: the words of the magics in Python, their help, and the nearest of a wrong one."""

import inspect

import pytest
from IPython.core.interactiveshell import InteractiveShell

import raykit as rk
from raykit.client.session import spec_of
from raykit.errors import OptionError
from raykit.jupyter.magics import _CELLS, _LINES, with_body
from raykit.spec import ClusterSpec
from raykit.spec.cluster import NodeGpus
from raykit.spec.parse import HelpAsked, parse, parse_all
from raykit.spec.words import keywords, values_of


def _spec(**words):
    return ClusterSpec(**values_of(ClusterSpec, words, command="rk.up"))


@pytest.mark.parametrize("function", [rk.up, rk.plan])
def test_up_and_plan_have_every_word_of_the_magic(function):
    parameters = inspect.signature(function).parameters
    assert [name for name in parameters if name != "fields"] == list(keywords(ClusterSpec))
    assert all(each.default is None for name, each in parameters.items() if name not in ("name", "fields"))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ({"cpus": 2, "nodes": 2, "on": "ssh", "hosts": ["a@x", "b@y"]}, "--cpus 2 --nodes 2 --on ssh --hosts a@x,b@y"),
        (
            {"on": "k8s", "nodes": (0, 8), "gpus_per_node": "A100:4", "idle": "20m", "labels": {"team": "vision"}, "price": 4},
            "--on k8s --nodes 0:8 --gpus-per-node A100:4 --idle 20m --labels team=vision --price 4",
        ),
        ({"on": "k8s", "nodes": "0:7", "price": 4.0, "max_cost": 30}, "--on k8s --nodes 0:7 --price 4 --max-cost 30/h"),
        ({"on": "fake", "idle": 1200, "idle_gpus": 0.05, "memory": 16 * 10**9}, "--on fake --idle 20m --idle-gpus 5% --memory 16G"),
        ({"object_store": "200M", "dashboard": True, "simulate_gpus": 2}, "--object-store 200M --dashboard --simulate-gpus 2"),
        ({"on": "k8s", "gpus_per_node": 4}, "--on k8s --gpus-per-node 4"),
        ({"num_cpus": 2, "object_store_bytes": 200_000_000}, "--cpus 2 --object-store 200M"),
        ({"on": "k8s", "gpus_per_node": NodeGpus(kind="T4")}, "--on k8s --gpus-per-node T4"),
    ],
)
def test_the_words_of_python_mean_what_they_mean_in_the_magic(words, line):
    assert _spec(**words) == parse(ClusterSpec, line, command="%ray up")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: rk.up(cpu=2), "rk.up: unknown word cpu.\nDid you mean cpus?"),
        (lambda: rk.plan(max_costs=2), "rk.plan: unknown word max_costs.\nDid you mean max_cost?"),
        (lambda: rk.up(cpus=2, num_cpus=2), "num_cpus was given twice"),
        (lambda: rk.up(cpus="many"), "rk.up: cpus: could not convert string to float: 'many'"),
        (lambda: rk.up(cpus=-1), "rk.up: cpus: '-1' is not an amount"),
        (lambda: rk.up(nodes=1.5), "rk.up: nodes: 1.5 is not a whole number"),
        (lambda: rk.up(dashboard="yes"), "neither True nor False"),
        (lambda: rk.up(on="moon"), "There is no place 'moon'"),
        (lambda: rk.Pipeline([len]).run([1], limits=3), "rk.Pipeline.run: unknown word limits.\nDid you mean limit?"),
        (lambda: rk.serve(len, replica=3), "rk.serve: unknown word replica.\nDid you mean replicas?"),
        (lambda: rk.resume("x", cluster="y"), "rk.resume: unknown word cluster."),
        (lambda: rk.scale("x", node=3), "rk.scale: unknown word node.\nDid you mean nodes?"),
    ],
)
def test_a_wrong_word_or_value_names_what_was_meant(call, said):
    with pytest.raises(OptionError) as caught:
        call()
    assert said in str(caught.value)


def test_what_was_not_given_stays_as_it_is():
    assert spec_of("local") == ClusterSpec() == _spec()


WORDS = [("%ray", word, each) for word, each in _LINES.items()] + [("%%ray", word, each) for word, each in _CELLS.items()]


@pytest.mark.parametrize(("prefix", "word", "each"), WORDS, ids=[f"{prefix} {word}" for prefix, word, _ in WORDS])
def test_the_help_of_every_word_says_what_its_options_are_for(prefix, word, each):
    with pytest.raises(HelpAsked) as asked:
        parse_all(each.kinds, "--help", command=f"{prefix} {word}", make=each.make)
    shown = "".join(str(asked.value).split())
    for kind in each.kinds:
        for described in keywords(kind).values():
            assert "".join(described.metadata["option"][1].split()) in shown
    assert "option_strings" not in shown


@pytest.fixture
def shell():
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    shell.run_line_magic("load_ext", "raykit")
    yield shell
    InteractiveShell.clear_instance()


@pytest.mark.parametrize("body", ["", "\n", "\nraise AssertionError('it runs')"])
@pytest.mark.parametrize("word", ["", *_CELLS])
def test_the_help_of_a_cell_runs_nothing_with_a_body_or_without(shell, capsys, word, body):
    done = shell.run_cell(f"%%ray {word} --help{body}")
    assert done.success
    assert "--help" in str(done.result) or f"usage: %%ray {word}" in str(done.result)


def test_a_cell_without_code_is_told_and_only_cells_of_ray_are_touched(shell, capsys):
    for word in ("run", "train"):
        assert "The cell has no code" in str(shell.run_cell(f"%%ray {word} x").error_in_exec)
    assert with_body(["%%time\n"]) == ["%%time\n"]
    assert with_body(["%%ray run\n", "1\n"]) == ["%%ray run\n", "1\n"]
    shell.run_line_magic("reload_ext", "raykit")
    assert sum(getattr(each, "__name__", "") == "with_body" for each in shell.input_transformers_cleanup) == 1


def test_errors_that_users_catch_are_in_rk():
    from raykit import errors

    public = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, rk.RaykitError)}
    assert {name for name in public if not name.startswith("_")} <= set(rk.__all__)
    with pytest.raises(rk.OptionError):
        rk.up(cpu=2)
