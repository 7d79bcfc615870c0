"""The user's optimizers, schedulers, scaler and averages: their calls change the state once, whatever is lost meanwhile."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.amp.grad_scaler import _refresh_per_optimizer_state

from raykit.engine.training.backward import is_in_backward
from raykit.engine.training.guarded import guard, original
from raykit.engine.training.state import Stateful, check_steps_by_itself
from raykit.errors import InputError

if TYPE_CHECKING:
    from raykit.engine.training.loop_state import LoopState

UPDATES = ("step", "update", "update_parameters")


class UserCalls:
    """Routes the calls that change a loop's state, so that each is made once a step on every rank.

    ``optimizer.step()`` and ``scaler.step(optimizer)`` are commits: they come after a reduction, alike on all ranks. The others
    follow them. In a void unit none of them changes anything; in a unit that is redone those are skipped that the state
    contains.
    """

    def __init__(self, loop: LoopState, cared_for: Stateful) -> None:
        self._loop, self._cared_for = loop, cared_for
        self.leave_hooks: list[Callable[[], None]] = []
        self._is_inside = self._commit_steps_schedulers = self._loop_steps_schedulers = False
        self._steps = [each.step for each in cared_for.optimizers]
        for place, optimizer in enumerate(cared_for.optimizers):
            self._route(optimizer, place)
        for each in cared_for.schedulers:
            guard(each, step=self._scheduler_stepped)
        for each in cared_for.extras:
            guard(each, **{name: self._updated for name in UPDATES if callable(getattr(each, name, None))})
        if (scaler := cared_for.scaler) is not None:
            scaler.scale(torch.zeros((), device=loop.member.device))  # begins it, also where no loss is scaled
            guard(scaler, step=self._scaler_stepped, update=self._updated)

    def step_all(self) -> None:
        """Step every optimizer, through the scaler if there is one, and the schedulers, unless the loop steps them itself."""
        scaler = self._cared_for.scaler
        for place, optimizer in enumerate(self._cared_for.optimizers):
            self._steps[place]() if scaler is None else self._step_scaled(optimizer)
        if scaler is not None:
            original(scaler, "update")()
        if self._loop_steps_schedulers:
            return
        for scheduler in self._cared_for.schedulers:
            if not self._commit_steps_schedulers:
                check_steps_by_itself(scheduler, partial(original(scheduler, "step")))
            self._within(original(scheduler, "step"))
        self._commit_steps_schedulers = bool(self._cared_for.schedulers)

    def discard(self) -> None:
        """Forget what a scaler has noted of gradients that are void."""
        if (scaler := self._cared_for.scaler) is not None:
            scaler._per_optimizer_states = defaultdict(_refresh_per_optimizer_state)  # noqa: SLF001  (as its own update does)

    def _route(self, optimizer: Any, place: int) -> None:
        raw_zero_grad, gradients = optimizer.zero_grad, self._loop.unit.gradients

        def step(closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
            return self._optimizer_stepped(place, closure, kwargs)

        def zero_grad(*args: Any, **kwargs: Any) -> None:
            gradients.were_zeroed()
            raw_zero_grad(*args, **kwargs)

        step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]  # noqa: SLF001  (a scheduler wants to wrap it else)
        optimizer.step, optimizer.zero_grad = step, zero_grad

    def _optimizer_stepped(self, place: int, closure: Callable[[], Any] | None, kwargs: dict[str, Any]) -> Any:
        optimizer = self._cared_for.optimizers[place]
        optimizer._opt_called = True  # noqa: SLF001  (a scheduler warns else that it is stepped too early)
        if self._is_inside:
            return self._steps[place](closure, **kwargs)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._commit(partial(self._steps[place], **kwargs), "optimizer.step()")
        return loss

    def _scaler_stepped(self, _: Callable[..., Any], optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or optimizer not in self._cared_for.optimizers:
            raise InputError(
                "scaler.step was called with more than an optimizer that rk.elastic was given.", "Call scaler.step(optimizer)."
            )
        return self._commit(partial(self._step_scaled, optimizer), "scaler.step(optimizer)")

    def _step_scaled(self, optimizer: Any) -> Any:
        # The optimizer itself, by which the scaler knows whether its gradients are unscaled already.
        return self._within(original(self._cared_for.scaler, "step"), optimizer)

    def _commit(self, step: Callable[[], Any], what: str) -> Any:
        """Take a step that counts once on all ranks, or on none."""
        loop = self._loop
        if is_in_backward():
            raise InputError(
                f"{what} was called during backward: the gradients are not those of all ranks yet.", "Call it after backward."
            )
        if not loop.is_open:
            raise InputError(
                f"{what} was called outside of job.batches: there is no step that could be redone after a loss.",
                "Take the batches from job.batches(...), or steps without data from job.steps(n).",
            )
        if loop.micro_batches is not None:
            raise InputError(
                f"{what} was called where batches come in micro-batches.", "Call job.commit(): it steps after the last of a step."
            )
        return loop.take_step(step)

    def _scheduler_stepped(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._is_inside:
            return step(*args, **kwargs)
        if self._commit_steps_schedulers or self._loop.micro_batches is not None:
            raise InputError(
                "scheduler.step() was called, and job.commit() steps the schedulers that rk.elastic was given.",
                "Leave the call out; or call optimizer.step() in place of job.commit(), and scheduler.step() where you like.",
            )
        self._loop_steps_schedulers = True
        return self._updated(step, *args, **kwargs)

    def _updated(self, update: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Let a call through that changes the state on every rank alike, unless it is void or done."""
        loop = self._loop
        if self._is_inside:
            return update(*args, **kwargs)
        if loop.is_void or loop.progress.next_is_done():
            return None
        result = self._within(update, *args, **kwargs)
        loop.progress.call_is_made()
        return result

    def _within(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Make a call whose own calls of guarded objects are a part of it."""
        was_inside, self._is_inside = self._is_inside, True
        try:
            return call(*args, **kwargs)
        finally:
            self._is_inside = was_inside
