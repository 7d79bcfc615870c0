"""Classes of the notebook are one class each in a process, in code, in rows and in results.

A class of ``__main__`` travels as its source does: whoever unpickles it makes a class. cloudpickle remembers which classes it
has made, by an id that travels with them, and gives the same one again. Two things are left to do. Code is pickled by
cloudpickle and rows by Ray's copy of it, which has a memory of its own: an Enum member of a row would not be the member that
the code means. And each time that a class comes its attributes are set again, so that a counter of the class would be back at
where it was pickled, in the notebook too.
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

LOOK_UP = "_lookup_class_or_track"
"""Its function that gives the class of an id: the one that is there, or the new one that it was given."""

SET_STATE = "_class_setstate"
"""Its function that sets the attributes of a class."""

_known: weakref.WeakSet[type] = weakref.WeakSet()


def keep_classes_one(*copies: ModuleType) -> None:
    """Let this process have one class where several pickles mean the same, with the attributes that it has here.

    Args:
        copies: modules that are copies of ``cloudpickle.cloudpickle``, such as Ray's.
    """
    import cloudpickle.cloudpickle

    ours = cloudpickle.cloudpickle
    for module in (ours, *copies):
        for name in MEMORY:
            setattr(module, name, getattr(ours, name))
        if not hasattr(getattr(module, SET_STATE), "__wrapped__"):
            _keep_known_classes(module)


def _keep_known_classes(module: ModuleType) -> None:
    look_up, set_state = getattr(module, LOOK_UP), getattr(module, SET_STATE)

    @functools.wraps(look_up)
    def looked_up(number: str, made: type) -> type:
        found: type = look_up(number, made)
        if found is not made:
            _known.add(found)
        return found

    @functools.wraps(set_state)  # pickles name it as they did
    def state_set(made: type, state: Any) -> type:
        return made if made in _known else set_state(made, state)

    setattr(module, LOOK_UP, looked_up)
    setattr(module, SET_STATE, state_set)
