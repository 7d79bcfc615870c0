import pickle

import pytest

from raykit import errors
from raykit.errors import MissingPackageError, RaykitError, RunFailedError, from_wire, require, to_wire


def _kinds(kind):
    return [kind, *[each for sub in kind.__subclasses__() for each in _kinds(sub)]]


def _made(kind):
    if issubclass(kind, MissingPackageError):
        return kind("kubernetes", "kuberay", "to reach KubeRay")
    return kind("r", "w", "E: m", "trace") if issubclass(kind, RunFailedError) else kind("what was found", "what to do")


KINDS = [kind for kind in _kinds(RaykitError) if kind.__module__ == "raykit.errors" and kind is not RaykitError]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_says_the_same_after_pickling_and_after_the_wire(kind):
    error = _made(kind)
    for copy in (pickle.loads(pickle.dumps(error)), from_wire(to_wire(error))):
        assert type(copy) is kind
        assert str(copy) == str(error)


def test_an_unknown_error_of_a_newer_door_still_says_what_came():
    assert "NewError" in str(from_wire({"error": "NewError", "facts": ["x"]}))


def test_a_missing_package_names_the_pip_line():
    with pytest.raises(MissingPackageError, match=r"pip install 'raykit\[kuberay\]'"):
        require("no_such_package_at_all", extra="kuberay", why="to reach KubeRay")


def test_a_failed_run_shows_the_user_s_traceback_and_none_of_raykit_s_frames():
    shown = "\n".join(RunFailedError("r", "decode", "ValueError: x", "Traceback: Cell In[3], line 2")._render_traceback_())
    assert "Cell In[3], line 2" in shown
    assert "raykit/" not in shown


def test_every_error_of_the_tree_stands_in_its_picture():
    assert all(kind.__name__ in errors.__doc__ for kind in KINDS if not kind.__name__.startswith("_"))
