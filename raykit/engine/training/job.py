"""``rk.elastic``: the training loop as the user sees it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from raykit.engine.reporter import Reporter
from raykit.engine.training import checkpoint, feed
from raykit.engine.training.buffers import Buffers
from raykit.engine.training.collective import BrokenWorldError, Reducer
from raykit.engine.training.member import Member
from raykit.errors import InputError
from raykit.events import StepCommitted, WorkerBusy

MAX_METRICS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a worker gives to its job."""

    member: Member
    checkpoints: checkpoint.Checkpoints
    checkpoint_every_s: float
    reporter: Reporter


_surroundings: Surroundings | None = None


def surround(surroundings: Surroundings) -> None:
    """Say once, in a worker's process, what its job is part of."""
    global _surroundings  # noqa: PLW0603  (a worker's process holds one run)
    _surroundings = surroundings


def elastic(*, model: torch.nn.Module, optimizer: Any, scheduler: Any = None, scaler: Any = None) -> Job:
    """Put a model and its optimizer under the care of the run: what they hold survives the loss of workers.

    Args:
        model: on ``rk.device()``; the first rank's parameters and buffers are given to all.
        optimizer: one or several; ``step`` is called by ``job.commit`` and refused by hand.
        scheduler: one or several, stepped once a commit.
        scaler: a ``torch.amp.GradScaler``; scale the loss with it as usual, ``commit`` does the rest.

    Raises:
        InputError: called outside of a training run.
    """
    if _surroundings is None:
        raise InputError(
            "rk.elastic was called outside of a training run.", "Use it in a %%ray train cell, or in a function given to rk.train."
        )
    return Job(_surroundings, model, _several(optimizer), _several(scheduler), scaler)


class Job:
    """A training loop that goes on when workers come and go.

    Each step draws its random numbers from (seed, step, rank), so that a step which is done again is the same step.
    """

    def __init__(
        self, surroundings: Surroundings, model: torch.nn.Module, optimizers: list[Any], schedulers: list[Any], scaler: Any
    ) -> None:
        self._around, self._member = surroundings, surroundings.member
        self._model, self._optimizers, self._schedulers, self._scaler = model, optimizers, schedulers, scaler
        self._reducer = Reducer([each for each in model.parameters() if each.requires_grad])
        self._buffers = Buffers(model)
        self._seed = torch.initial_seed()
        self._optimizer_steps = [each.step for each in optimizers]
        for each in optimizers:
            each.step = _refuse_step
        self.step = self.epoch = self.num_rows = 0
        self._planned_steps = 0
        self._weight = self._batch_rows = 0.0
        self._total_weight: float | None = None
        self._logged: dict[str, float] = {}
        self._answered = self._agreed = self._stopping = False
        self._stop_wanted = False
        self._step_begun_s = self._saved_s = time.monotonic()

    @property
    def rank(self) -> int:
        return self._member.group.rank if self._member.group else 0

    @property
    def world_size(self) -> int:
        return self._member.group.world_size if self._member.group else 1

    def batches(self, dataset: Any, *, batch_size: int, epochs: int = 1, seed: int = 0) -> Iterator[Any]:
        """Give this rank's part of each global batch, on the device, until ``epochs`` are committed.

        ``batch_size`` is the global batch, whatever the world size. A step that a loss broke is given again, divided
        anew. A rank that has no row of a short last batch takes part without running the loop's body.

        Raises:
            InputError: the body ended without ``job.commit``.
        """
        if batch_size < 1 or epochs < 1:
            raise InputError(f"batch_size is {batch_size}, epochs is {epochs}.", "Give at least 1 of each.")
        rows = feed.Rows(dataset)
        first, steps = self._planned_steps, feed.steps_per_epoch(rows.num_rows, batch_size) * epochs
        self._planned_steps += steps
        while not self._stopping:
            self._member.align(self, agreed=self._agreed)
            self._agreed = False
            if self.step >= first + steps:
                return
            self.epoch = (self.step - first) // feed.steps_per_epoch(rows.num_rows, batch_size)
            indices = feed.global_batch(rows.num_rows, batch_size, seed, self.step - first)
            mine = feed.share(indices, self.rank, self.world_size)
            self._begin(len(mine), len(indices))
            if len(mine) == 0:
                self.commit()
                continue
            yield feed.to_device(rows.take(mine), self._member.device)
            if not self._answered:
                raise InputError("The loop's body ended without job.commit().", "Call it once for each batch.")

    def commit(self, **metrics: Any) -> bool:
        """Sum the gradients over the ranks and step the optimizer on all of them, or on none.

        ``metrics`` are numbers or tensors of one element; their means over the global batch are shown.

        Returns:
            Whether the step is committed. When a peer was lost it is not, and ``batches`` gives the batch again.
        """
        self._answered = True
        try:
            if self._total_weight is None:
                self._sync(metrics)
        except BrokenWorldError as exc:
            self._member.broke(str(exc))
            self._buffers.restore()
            self._zero_grad()
            return False
        for optimizer, step in zip(self._optimizers, self._optimizer_steps, strict=True):
            if self._scaler is None:
                step()
            else:
                self._scaler.step(_Steps(optimizer, step))
        if self._scaler is not None:
            self._scaler.update()
        for scheduler in self._schedulers:
            scheduler.step()
        self._buffers.keep()
        self._zero_grad()
        self.step += 1
        self.num_rows += int(self._batch_rows)
        self._committed()
        return True

    def sync(self, **metrics: Any) -> bool:
        """Make the gradients final before ``commit``, to clip them, say. False when a peer was lost: call commit still."""
        try:
            self._sync(metrics)
        except BrokenWorldError as exc:
            self._member.broke(str(exc))
            return False
        return True

    def weight(self, rows: float) -> None:
        """Say, before backward, over how many rows the loss is a mean, when it is not over the batch's."""
        self._weight = float(rows)
        self._reducer.set_weight(self._weight)

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """Run backward on a micro-batch without reducing; the last micro-batch stands outside of the ``with``."""
        self._reducer.enabled = False
        try:
            yield
        finally:
            self._reducer.enabled = True

    def log(self, **values: float) -> None:
        """Show numbers with the next commit, as this rank has them (rank 0's are shown)."""
        self._logged |= {name: float(value) for name, value in values.items()}

    def stop(self) -> None:
        """End all ranks together after the next commit."""
        self._stop_wanted = True

    def evaluate(self, function: Callable[[], Any]) -> Any:
        """Run ``function`` on rank 0 while the others wait at their next commit; they get None."""
        if self.rank != 0:
            return None
        self._member.busy_with = f"evaluate ({getattr(function, '__name__', 'function')})"
        self._around.reporter.emit(WorkerBusy(worker=self._member.worker, what=self._member.busy_with))
        try:
            with torch.no_grad():
                return function()
        finally:
            self._member.busy_with = ""
            self._around.reporter.emit(WorkerBusy(worker=self._member.worker, what=""))

    def state_bytes(self) -> bytes:
        """Copy what a joiner or a checkpoint needs."""
        state = {name: [part.state_dict() for part in parts] for name, parts in self._parts().items()}
        return checkpoint.to_bytes(state | {"step": self.step, "num_rows": self.num_rows, "seed": self._seed})

    def adopt(self, data: bytes) -> None:
        """Take over a state that ``state_bytes`` gave."""
        state = checkpoint.from_bytes(data)
        for name, parts in self._parts().items():
            for part, kept in zip(parts, state[name], strict=True):
                part.load_state_dict(kept)
        self.step, self.num_rows, self._seed = state["step"], state["num_rows"], state["seed"]

    def kept_state(self) -> bytes | None:
        """Give the newest checkpoint of an earlier life of this run, or None."""
        return self._around.checkpoints.newest()

    def _parts(self) -> dict[str, list[Any]]:
        """Give all that has a state."""
        scalers = [] if self._scaler is None else [self._scaler]
        return {"model": [self._model], "optimizers": self._optimizers, "schedulers": self._schedulers, "scaler": scalers}

    def _zero_grad(self) -> None:
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)

    def _begin(self, rows: int, batch_rows: int) -> None:
        assert self._member.group is not None
        self._weight, self._batch_rows, self._total_weight = float(rows), batch_rows, None
        self._answered = False
        self._step_begun_s = time.monotonic()
        self._reducer.begin(self._member.group, self._weight)
        self._buffers.begin()
        torch.manual_seed(hash((self._seed, self.step, self.rank)) % 2**63)

    def _sync(self, metrics: dict[str, Any]) -> None:
        """Reduce one control vector (weight, who sees the next world, who wants to stop, metrics) and the gradients."""
        group = self._member.group
        if group is None:
            raise BrokenWorldError("the world was left")
        if len(metrics) > MAX_METRICS:
            raise InputError(f"{len(metrics)} metrics were given to commit.", f"Give up to {MAX_METRICS}.")
        control = torch.zeros(3 + MAX_METRICS, dtype=torch.float64)
        control[0] = self._weight
        control[1] = float(self._member.sees_next)
        control[2] = float(self._stop_wanted or self._member.stop_asked)
        for place, value in enumerate(metrics.values()):
            control[3 + place] = _number(value) * self._weight
        with self._member.within("waiting"):
            self._reducer.finish()
            group.wait(group.reduce(control))
            self._buffers.reduce(group, self._weight, float(control[0]))
        self._total_weight = float(control[0])
        self._agreed = bool(control[1] == group.world_size)
        self._stopping = bool(control[2] > 0)
        self._reducer.write_back(self._total_weight)
        means = {name: float(control[3 + place]) / self._total_weight for place, name in enumerate(metrics)}
        self._logged = means | self._logged

    def _committed(self) -> None:
        now_s = time.monotonic()
        if self.rank == 0:
            event = StepCommitted(
                step=self.step,
                epoch=self.epoch,
                num_rows=self.num_rows,
                total_steps=self._planned_steps,
                metrics=self._logged,
                step_s=now_s - self._step_begun_s,
            )
            first, reporter = self._member.first_commit(), self._around.reporter
            (reporter.emit(event) if first else reporter.sample("step", event))
            due = now_s - self._saved_s > self._around.checkpoint_every_s
            if due or self._stopping:
                self._saved_s = now_s
                self._around.checkpoints.save(self.step, self.state_bytes())
        self._logged = {}


def _several(given: Any) -> list[Any]:
    if given is None:
        return []
    return list(given) if isinstance(given, list | tuple) else [given]


def _number(value: Any) -> float:
    return float(value.detach()) if isinstance(value, torch.Tensor) else float(value)


class _Steps:
    """An optimizer for GradScaler, whose step is the real one."""

    def __init__(self, optimizer: Any, step: Callable[..., Any]) -> None:
        self._optimizer, self.step = optimizer, step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)


def _refuse_step(*_: Any, **__: Any) -> None:
    raise InputError(
        "optimizer.step() was called by hand: the ranks would drift apart.",
        "Call job.commit(loss=loss) instead; it steps all or none.",
    )


_refuse_step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]  # noqa: SLF001  (silences a scheduler's warning)
