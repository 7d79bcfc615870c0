"""The end of a backward pass, as a callback: gradients are reduced before ``loss.backward()`` returns, as DDP does it.

Autograd has a callback of its own for that (``queue_callback``), which runs at the end of the innermost pass. Reentrant
gradient checkpointing runs one pass inside another, and gradients are complete at the end of the outermost only.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch


class _Watched(threading.local):
    """The passes that this thread is in, and what it calls after the outermost."""

    def __init__(self) -> None:
        self.depth = 0
        self.callbacks: list[Callable[[], None]] = []


_here = _Watched()


def call_after_backward(callback: Callable[[], None]) -> None:
    """Call ``callback`` in this thread whenever a backward pass that this thread has begun ends without an error."""
    if not hasattr(torch.autograd.backward, "_calls_back"):
        torch.autograd.backward = _calling_back(torch.autograd.backward)  # where Tensor.backward looks it up, too
    _here.callbacks.append(callback)


def forget_callbacks() -> None:
    """Drop the callbacks of this thread."""
    _here.callbacks.clear()


def is_in_backward() -> bool:
    """Return whether this thread is inside of a backward pass, in a hook for instance."""
    return _here.depth > 0


def _calling_back(original: Callable[..., None]) -> Any:
    @functools.wraps(original)
    def backward(*args: Any, **kwargs: Any) -> None:
        _here.depth += 1
        try:
            original(*args, **kwargs)
        finally:
            _here.depth -= 1
        if _here.depth == 0:
            for callback in tuple(_here.callbacks):
                callback()

    backward._calls_back = True  # type: ignore[attr-defined]  # noqa: SLF001
    return backward
