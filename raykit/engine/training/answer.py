"""What a run does about a loss: a word of its spec, or what the user's function says when it sees the view."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, get_args

from raykit.decisions import LossAnswer
from raykit.engine.run import RunContext, UserCodeError, as_user_error
from raykit.events import Record, WorkerLost
from raykit.spec import TrainSpec
from raykit.spec.training import ON_LOSS
from raykit.views import RunView, fold

EXTRA = "on_loss"


class Answer:
    """Asked at each loss of a rank. The user's function runs in the host's own thread: the loop waits for it."""

    def __init__(self, context: RunContext) -> None:
        spec: TrainSpec = context.spec
        self._context, self._word = context, spec.on_loss
        self._function: Callable[[RunView], Any] | None = None
        if spec.on_loss not in ON_LOSS:
            payload = context.payload()
            self._function = payload.open_extra(EXTRA)

    def to(self, worker: str, rank: int | None, cause: str) -> LossAnswer:
        """Say what is to be done about the loss of a rank.

        Raises:
            UserCodeError: the user's function raised, or answered with another word.
        """
        answer: Any = self._word
        if self._function is not None:
            view = self._context.view()
            # The log may not have it yet.
            lost = WorkerLost(worker=worker, rank=rank, cause=cause)
            view = fold(view, Record(number=view.number + 1, at_unix_s=time.time(), run=view.name, event=lost))
            try:
                answer = self._function(view)
            except Exception as exc:
                raise as_user_error(exc, self._context.payload(), "on_loss") from exc
        if answer not in get_args(LossAnswer):
            said = f"on_loss answered {answer!r}; it has to answer one of: {', '.join(get_args(LossAnswer))}."
            raise UserCodeError("on_loss", said, "")
        word: LossAnswer = answer
        return word
