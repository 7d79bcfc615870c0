"""Classes of the notebook are one class each in a process, in code as in rows.

A class of ``__main__`` travels as its source does: whoever unpickles it makes a class. cloudpickle remembers which classes it
has made, by an id that travels with them, and gives the same one again. But code is pickled by cloudpickle and rows by Ray's
copy of it, which has a memory of its own: an Enum member of a row is then not the member that the code means. And each time
that it comes, its attributes are set anew, so that a counter of the class would be back at where it was pickled.
"""

from __future__ import annotations

import functools
import weakref
from types import ModuleType
from typing import Any

MEMORY = (
    "_DYNAMIC_CLASS_TRACKER_BY_CLASS",
    "_DYNAMIC_CLASS_TRACKER_BY_ID",
    "_DYNAMIC_CLASS_TRACKER_LOCK",
)
"""What cloudpickle remembers classes by."""

SET_STATE = "_class_setstate"
"""Its function that sets the attributes of a class that came."""

_complete: weakref.WeakSet[type] = weakref.WeakSet()


def keep_classes_one() -> None:
    """Let this process have one class where code and rows mean the same, with the attributes that it has here."""
    import cloudpickle.cloudpickle
    import ray.cloudpickle.cloudpickle

    ours, rays = cloudpickle.cloudpickle, ray.cloudpickle.cloudpickle
    if getattr(rays, MEMORY[0]) is getattr(ours, MEMORY[0]):
        return
    for name in MEMORY:
        setattr(rays, name, getattr(ours, name))
    for module in (ours, rays):
        _set_state_once(module)


def _set_state_once(module: ModuleType) -> None:
    original = getattr(module, SET_STATE)

    @functools.wraps(original)  # pickles name it as they did
    def set_state(made: type, state: Any) -> type:
        if made not in _complete:
            _complete.add(made)
            original(made, state)
        return made

    setattr(module, SET_STATE, set_state)
