"""The user's loop in a worker of Ray Train: called as Ray Train would call it, with its lines and its errors brought home."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import ray
import ray.train

from raykit.engine.folder import RunFolder
from raykit.engine.reporter import Reporter, captured
from raykit.engine.run import UserCodeError, as_user_error
from raykit.wire.loop import call_loop
from raykit.wire.payload import Payload

FIRST = "rank-0"


class LoopFailedError(Exception):
    """The user's loop raised. Facts: when, whether the loss of another rank may be why, and those of the user's error.

    Ray Train brings an exception home without its traceback: the traceback is text before it leaves the worker.
    """

    def __init__(self, at_unix_s: float, may_be_loss: bool, where: str, error: str, traceback_text: str) -> None:
        super().__init__(at_unix_s, may_be_loss, where, error, traceback_text)

    @property
    def may_be_loss(self) -> bool:
        return bool(self.args[1])

    @property
    def rank_order(self) -> tuple[bool, float]:
        """Order failures of one world: the first is what made the others fail."""
        return self.args[1], self.args[0]

    @property
    def as_user_error(self) -> UserCodeError:
        return UserCodeError(*self.args[2:])

    def __str__(self) -> str:
        return str(self.args[3])


def loop_of(host: Any, folder: RunFolder) -> Any:
    """Give the loop of the run in ``folder`` as a function without parameters, which Ray Train can send to its workers."""
    return partial(_run, host, folder)


def _run(host: Any, folder: RunFolder) -> None:
    payload = folder.payload()
    rank = ray.train.get_context().get_world_rank()
    source = f"rank-{rank}"
    reporter = Reporter(host, source, folder).start()
    try:
        with captured(reporter, programs=False):
            try:
                call_loop(payload.open())
            except BaseException as exc:  # a loop may also leave by sys.exit
                raise _failed(exc, payload, f"rank {rank}") from None
    finally:
        reporter.close()


def _failed(error: BaseException, payload: Payload, where: str) -> LoopFailedError:
    # A collective without its peer raises RuntimeError or OSError by torch's hand, Ray's own errors by Ray Train's.
    may_be_loss = isinstance(error, RuntimeError | OSError | ray.exceptions.RayError)
    return LoopFailedError(time.time(), may_be_loss, *as_user_error(error, payload, where).args)
