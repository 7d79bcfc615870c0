"""As many threads for the numeric libraries as a slot has CPUs: each would start one for every core of the machine."""

from __future__ import annotations

import inspect
import os
import sys
from functools import cache
from typing import Any

import wrapt

from raykit.wire.place import chosen

POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def limit_threads(num_cpus: float) -> None:
    """Give the pools of torch, cv2, OpenMP and onnxruntime as many threads as the slot has CPUs, at least one.

    What a person has chosen for the process, as by ``--env OMP_NUM_THREADS=2``, stays.

    A library that is imported later reads the environment then; sessions of onnxruntime keep the threads that they were
    made with, and those whose options name a number have that.
    """
    threads = max(1, int(num_cpus))
    is_ours = chosen.isdisjoint(POOLS)
    os.environ.update(dict.fromkeys(POOLS, str(threads)) if is_ours else {POOLS[0]: os.environ.get(POOLS[0], str(threads))})
    _watch_sessions()
    if "torch" in sys.modules and is_ours:
        import torch

        torch.set_num_threads(threads)
    if "cv2" in sys.modules:
        import cv2

        cv2.setNumThreads(threads)


@cache
def _watch_sessions() -> None:
    """onnxruntime reads no environment, and its default is all cores."""
    wrapt.when_imported("onnxruntime")(_limit_sessions)


def _limit_sessions(onnxruntime: Any) -> None:
    @wrapt.patch_function_wrapper(onnxruntime, "InferenceSession.__init__")
    def begin(wrapped: Any, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = inspect.signature(wrapped).bind(*args, **kwargs)
        options = given.arguments.get("sess_options") or onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.intra_op_num_threads or int(os.environ[POOLS[0]])
        given.arguments["sess_options"] = options
        wrapped(*given.args, **given.kwargs)
