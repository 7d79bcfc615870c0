"""A stand-in that puts the real ``rfc3987_syntax`` off until somebody checks an IRI with it.

jsonschema imports that package when it is itself imported, and the package builds an Earley grammar at import: two
seconds of CPU in every Ray process, because JupyterLab installs it. raykit puts this file's folder first on the path of
the Ray processes that it starts; the first call, or any other name, brings the real package in.
"""

import importlib
import os
import sys
import threading

_lock = threading.Lock()


def _real():
    here = os.path.dirname(os.path.abspath(__file__))
    with _lock:
        stand_in, path = sys.modules.pop(__name__), sys.path[:]
        sys.path[:] = [entry for entry in path if os.path.abspath(entry) != here]
        try:
            return importlib.import_module(__name__)
        finally:
            sys.path[:] = path
            sys.modules[__name__] = stand_in


def is_valid_syntax(term, value):
    """Say whether ``value`` is a valid ``term`` ("iri", "iri-reference"), as the real package does."""
    return _resolve("is_valid_syntax")(term, value)


_resolved = {}


def _resolve(name):
    if name not in _resolved:
        _resolved[name] = getattr(_real(), name)
    return _resolved[name]


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return _resolve(name)
