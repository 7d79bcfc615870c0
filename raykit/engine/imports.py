"""Imports of much code, such as torch, without a search for garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Look for no garbage in the block, and later for none in what it has imported.

    Modules stay, so both would be in vain: it is a sixth of the time that the imports take, and afterwards a quarter of a
    second in the middle of somebody's step.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
