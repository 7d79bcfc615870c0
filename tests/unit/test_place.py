"""A run's process stands where the notebook does, or its errors say that it does not."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from raykit.client.capture import capture_cell
from raykit.client.environment import checked_variables, given_variables
from raykit.errors import InputError, OptionError
from raykit.spec.lines import Variables, Viewing
from raykit.spec.parse import parse_all
from raykit.wire.place import Place

ENTER = """
import os, pickle, sys
place = pickle.load(open(sys.argv[1], "rb"))
sys.path.insert(0, os.getcwd())  # as Ray's workers have the folder in which the cluster was started
place.enter(kept={"OF_THE_STAGE"})
print(os.getcwd(), os.environ.get("A"), os.environ["OF_THE_STAGE"], open("config.txt").read())
try:
    import only_where_up_was_called
except ImportError:
    print("as in the notebook")
import beside_by_name
"""


def test_a_process_reads_finds_and_imports_what_the_notebook_would(tmp_path, monkeypatch):
    import pickle

    notebook, cluster = tmp_path / "notebook", tmp_path / "cluster"
    for folder in (notebook, cluster):
        folder.mkdir()
        (folder / "config.txt").write_text(folder.name)
    (cluster / "only_where_up_was_called.py").touch()
    (notebook / "beside_by_name.py").write_text("print(__file__)")
    monkeypatch.chdir(notebook)
    monkeypatch.syspath_prepend("")
    place = Place.of_this_process({"A": "1", "OF_THE_STAGE": "no"}, is_near=True)
    (tmp_path / "place").write_bytes(pickle.dumps(place))
    environment = os.environ | {"OF_THE_STAGE": "yes"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path and os.path.isdir(path) and path != str(notebook))
    line = [sys.executable, "-c", ENTER, tmp_path / "place"]
    done = subprocess.run(line, cwd=cluster, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [f"{notebook} 1 yes notebook", "as in the notebook", str(notebook / "beside_by_name.py")], (
        done.stderr
    )


def test_secrets_are_not_shown():
    assert "hidden" not in repr(Place(environment={"TOKEN": "hidden"}))


def _error(cell, place):
    payload = replace(capture_cell(cell, {}, title="Cell In[1]"), place=place)
    with pytest.raises(FileNotFoundError) as caught:
        payload.open().run()
    return payload.traceback_of(caught.value)


@pytest.mark.parametrize(
    "cell",
    [
        "open('config.txt')",
        "import pandas\npandas.read_csv('./config.txt')",
        "import pyarrow.parquet\npyarrow.parquet.read_table('config.txt')",
        "import numpy\nnumpy.load('data/x.npy')",
        "open('/home/me/notebooks/config.txt')",
    ],
)
def test_a_path_that_another_machine_lacks_is_said_to_lie_beside_the_notebook(cell):
    place = Place(folder="/home/me/notebooks", inode=1, names=frozenset({"config.txt", "data"}))
    assert "lies beside the notebook (in /home/me/notebooks)" in _error(cell, place)


def test_a_path_that_is_nowhere_is_not_said_to_lie_there():
    place = Place(folder="/home/me/notebooks", inode=1, names=frozenset({"config.txt"}))
    assert "beside the notebook" not in _error("open('other.txt')", place)
    assert "notebook" not in _error("open('/nowhere/x.txt')", place)
    assert "notebook" not in _error("open('other.txt')", Place.of_this_process({}, is_near=True))


def test_variables_are_read_from_a_line_and_the_kernel(monkeypatch):
    monkeypatch.setenv("OWN", "of the kernel")
    variables, viewing = parse_all((Variables, Viewing), "--env A=x=1,OWN,EMPTY= --detach", command="%%ray run")
    assert given_variables(variables.env) == {"A": "x=1", "OWN": "of the kernel", "EMPTY": ""}
    assert viewing.detach
    with pytest.raises(OptionError, match="NOT_THERE"):
        given_variables((("NOT_THERE", None),))
    with pytest.raises(OptionError, match="is no variable"):
        parse_all((Variables,), "--env 1=2", command="%%ray run")


@pytest.mark.parametrize("env", [{"A": 1}, {1: "A"}, {"A=B": "c"}, {"": "c"}, {"A": "\0"}])
def test_what_no_environment_can_hold_is_refused(env):
    with pytest.raises(InputError):
        checked_variables(env)
