"""A module that was edited after its import is said to be, and nothing else is."""

import importlib
import os
import sys

import pytest

from raykit.client.edited import edited_modules
from raykit.wire.payload import ModuleText

BEFORE = '''
import functools
RATE = 0.1
TABLE = {"a": 1}
def scale(x):
    """Scale."""
    return [each * RATE for each in x]
@functools.cache
def cached(x):
    return x + 1
class Net:
    layers = 3
    def forward(self, x):
        return x
    @property
    def size(self):
        return 1
    @staticmethod
    def make():
        return Net()
'''


@pytest.fixture
def sentences(tmp_path, monkeypatch):
    """Import a module, write another text into its file, and return what is said."""
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "edited_module.py"
    file.write_text(BEFORE)
    importlib.import_module("edited_module")

    def after(text):
        file.write_text(text)
        os.utime(file)
        return edited_modules({"edited_module": ModuleText(filename=str(file), text=text, is_package=False)})

    yield after
    sys.modules.pop("edited_module", None)


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("each * RATE", "each / RATE", "scale"),
        ("x + 1", "x + 2", "cached"),
        ("return x\n", "return -x\n", "Net"),
        ("return 1\n", "return 2\n", "Net"),
        ("return Net()", "return None", "Net"),
        ("RATE = 0.1", "RATE = 0.2", "RATE"),
        ("RATE = 0.1", "RATE = 0.1\ndef added(): ...", "added"),
        ("def scale", "def renamed", "renamed, scale"),
        ("def scale(x):", "def scale(x:", "it is no Python any more"),
    ],
)
def test_a_change_is_named(sentences, old, new, name):
    assert old in BEFORE
    said = sentences(BEFORE.replace(old, new))
    assert len(said) == 1
    assert f"edited_module.py was edited after this kernel imported it ({name})" in said[0]


@pytest.mark.parametrize(
    "text", [BEFORE, "# a comment\n\n" + BEFORE, BEFORE.replace("    return x + 1", "    # why\n    return x + 1")]
)
def test_what_runs_the_same_is_not_said_to_be_edited(sentences, text):
    assert sentences(text) == []


def test_a_reloaded_module_is_not_said_to_be_edited(sentences):
    text = BEFORE.replace("x + 1", "x + 22")
    assert sentences(text)
    importlib.invalidate_caches()
    importlib.reload(sys.modules["edited_module"])
    assert sentences(text) == []
