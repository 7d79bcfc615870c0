"""The training loop as the user sees it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from raykit.engine.reporter import Reporter
from raykit.engine.training import bodiless
from raykit.engine.training.checkpoint import Checkpoints
from raykit.engine.training.feed import Cut
from raykit.engine.training.member import Member, Proposal
from raykit.engine.training.rendezvous import BrokenWorldError
from raykit.engine.training.rows import Ahead, Source, Streamed, source_of, to_device
from raykit.engine.training.state import State, Stateful
from raykit.engine.training.step import Step
from raykit.engine.training.tally import Tally
from raykit.engine.training.turns import Turns
from raykit.errors import InputError
from raykit.events import StepCommitted, WorkerBusy
from raykit.spec.training import Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a worker gives to its job."""

    member: Member
    checkpoints: Checkpoints
    checkpoint_every: Interval
    reporter: Reporter
    group_size: int
    stored_dataset: Callable[[int, Callable[[], Any]], str]


class Job:
    """A training loop that goes on when workers come and go.

    Each step draws its random numbers (torch's, numpy's and Python's) from (seed, step, rank), so that a step which is
    done again is the same step.
    """

    def __init__(self, surroundings: Surroundings, cared_for: Stateful) -> None:
        self._around, self._member, self._cared_for = surroundings, surroundings.member, cared_for
        self._step = Step(cared_for, group_size=surroundings.group_size)
        self._seed = torch.initial_seed()
        self._optimizer_steps = [each.step for each in cared_for.optimizers]
        for each in cared_for.optimizers:
            each.step = _refuse_step
        if cared_for.scaler is not None:
            cared_for.scaler.scale(torch.zeros((), device=self._member.device))  # begins it, also where no loss is scaled
        self.step = self.epoch = self.num_rows = self.num_parts_done = 0
        self.prepared = False
        self._planned_steps = self._num_datasets = 0
        self._total_steps: int | None = None
        self._total: Tally | None = None
        self._turns: Turns | None = None
        self._logged: dict[str, float] = {}
        self._answered = self._agreed = self._stopping = self._save_wanted = False
        self._stop_wanted = False
        self._saved_s = time.monotonic()
        self._saved_step = 0
        self._leave_hooks: list[Callable[[], None]] = []

    @property
    def rank(self) -> int:
        return self._member.rank

    @property
    def world_size(self) -> int:
        return self._member.group.world_size if self._member.group else 1

    def batches(
        self,
        dataset: Any,
        *,
        batch_size: int,
        epochs: int = 1,
        seed: int = 0,
        num_workers: int = 0,
        prefetch: int = 2,
        shared_in_group: bool = False,
        micro_batch: int | None = None,
        collate_fn: Callable[[list[Any]], Any] = default_collate,
    ) -> Iterator[Any]:
        """Give this rank's part of each global batch, on the device, until ``epochs`` are committed.

        A step that a loss broke is given again, divided anew. A rank that has no row of a short last batch takes part
        without running the loop's body: what the body sets on other ranks before ``commit`` (gradients that are clipped, a
        learning rate) is set there, too; what is to be done after each commit on all ranks belongs into a scheduler.

        With ``micro_batch`` the part comes in several, each of so many rows, and the body runs for each: gradients add up,
        and ``commit`` takes the step after the last. Ranks take them one after the other, so who is fast does more, and who
        finds all taken does not run the body. A rank whose slot is wanted gives it after the micro-batch that it is in, and
        one that comes takes part from the next one on. Which random numbers a micro-batch draws does not depend on who does
        it.

        Args:
            dataset: a map-style dataset, a list, a dict or tuple of arrays, a DataFrame or an Arrow table; a path or URL of
                Parquet files; a function that makes a Ray Dataset (called once in the run, its rows stored in the run's
                folder); or an iterable, of which each rank goes through all rows, in its own order, and which must give them
                in the same order each time.
            batch_size: of the global batch, whatever the world size.
            epochs: how often each row is seen.
            seed: of the order of rows.
            num_workers: processes that take rows ahead of their step, as in a ``DataLoader``.
            prefetch: batches that each of them is ahead.
            shared_in_group: all ranks of a replica get the same rows, as tensor parallel wants it; else (FSDP) each its own.
            micro_batch: rows of each pass through the body; not with ``num_workers``, or replicas of several ranks.
            collate_fn: makes a batch of a list of rows, as in a ``DataLoader``: pads texts, say.

        Raises:
            InputError: the data is of no known form or empty; the body ended without ``job.commit``; ranks would drift apart.
        """
        if batch_size < 1 or epochs < 1:
            raise InputError(f"batch_size is {batch_size}, epochs is {epochs}.", "Give at least 1 of each.")
        source = source_of(self._stored(dataset), batch_size=batch_size, epochs=epochs, seed=seed, collate=collate_fn)
        if micro_batch is not None and (micro_batch < 1 or num_workers or self._member.group_size > 1):
            raise InputError(
                f"micro_batch is {micro_batch}, with {num_workers} num_workers, in replicas of {self._member.group_size} ranks.",
                "Give at least 1, no num_workers, and replicas of one rank (--group 1).",
            )
        if num_workers and isinstance(source, Streamed):
            raise InputError("num_workers was given for an iterable, which is gone through in its order.", "Leave num_workers out.")
        ahead = Ahead(source, num_workers, prefetch) if num_workers else None
        self._member.leaves_within_steps = micro_batch is not None
        first, num_steps = self._planned_steps, source.num_steps()
        self._total_steps = None if num_steps is None else first + num_steps
        while not self._stopping:
            self._member.align(self, agreed=self._agreed)
            self._agreed, self._stopping = False, self._stopping or self._member.is_final
            if self._stopping:
                break
            rows = source.batch(self.step - first)
            if rows is None:
                self._planned_steps = self._total_steps = first + (source.num_steps() or 0)
                if self._planned_steps == first:
                    raise InputError(f"The {type(dataset).__name__} gave no rows.", "Give at least one row.")
                return
            self.epoch = source.epoch_of(self.step - first)
            cut = self._begin(rows, shared_in_group=shared_in_group, in_parts=micro_batch is not None)
            if micro_batch is not None:
                yield from self._in_parts(rows, micro_batch, source)
                continue
            mine = cut.of(rows)
            if len(mine) == 0:
                self.commit()
                continue
            self._step.runs_body = True
            yield to_device(ahead.take(self.step - first, cut) if ahead else source.take(mine), self._member.device)
            self._check_answered()
        self.save(of_replica_0=True)

    def commit(self, **metrics: Any) -> bool:
        """Sum the gradients over the ranks and step the optimizer on all of them, or on none.

        ``metrics`` are numbers or tensors of one element; their means over the global batch are shown.

        Returns:
            Whether the step is committed. When a peer was lost it is not, and ``batches`` gives the batch again; nor is it
            after a micro-batch that is not the last.
        """
        self._answered = True
        try:
            if self._turns is not None and not self._turns.is_through(metrics):
                return False
            total = self._total or self._sync(metrics)
            if total.bodiless:
                self._share(with_gradients=total.synced > 0)
            self.prepared = True
            self._member.confirm()
        except BrokenWorldError as exc:
            self._break(exc)
            if not self.prepared:
                self.discard()
            return False
        self.roll_forward()
        return True

    def roll_forward(self) -> None:
        """Take the step that is prepared."""
        scaler = self._cared_for.scaler
        for optimizer, step in zip(self._cared_for.optimizers, self._optimizer_steps, strict=True):
            if scaler is None:
                step()
                continue
            # The optimizer itself, by which the scaler knows whether its gradients are unscaled already.
            optimizer.step = step
            scaler.step(optimizer)
            optimizer.step = _refuse_step
        if scaler is not None:
            scaler.update()
        for scheduler in self._cared_for.schedulers:
            scheduler.step()
        self._step.keep()
        self.prepared, self.num_parts_done = False, 0
        self.step += 1
        self.num_rows += self._step.num_rows
        self._committed()

    def discard(self) -> None:
        """Be as after the last commit."""
        self._step.discard()
        self.prepared, self.num_parts_done = False, 0

    def sync(self, **metrics: Any) -> bool:
        """Make the gradients final before ``commit``, to clip them, say.

        False when a peer was lost, or the micro-batch is not the step's last: call commit still.
        """
        try:
            if self._turns is not None and not self._turns.is_through(metrics):
                return False
            self._sync(metrics, by_hand=True)
        except BrokenWorldError as exc:
            self._break(exc)
            return False
        return True

    def weight(self, rows: float) -> None:
        """Say, before backward, over how many rows the loss is a mean, when it is not over the batch's.

        In replicas of several ranks all of them have to say it.
        """
        self._step.weigh(float(rows))

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """Run backward on a micro-batch without reducing; the last micro-batch stands outside of the ``with``.

        Raises:
            InputError: ``batches`` gives micro-batches already.
        """
        with self._step.unreduced():
            yield

    def log(self, **values: float) -> None:
        """Show numbers with the next commit, as this rank has them (rank 0's are shown)."""
        self._logged |= {name: float(value) for name, value in values.items()}

    def stop(self) -> None:
        """End all ranks together after the next commit."""
        self._stop_wanted = True

    def on_leave(self, function: Callable[[], None]) -> None:
        """Call ``function`` when this rank has left the world because the run was made smaller, before its process ends.

        It has ten seconds, and the world's last committed state before its eyes.
        """
        self._leave_hooks.append(function)

    def evaluate(self, function: Callable[[], Any]) -> Any:
        """Run ``function`` on rank 0 (or its whole replica) while the others wait at their next commit; they get None."""
        if self.rank >= self._member.group_size:
            return None
        self._member.busy_with = f"evaluate ({getattr(function, '__name__', 'function')})"
        self._around.reporter.emit(WorkerBusy(worker=self._member.worker, what=self._member.busy_with))
        try:
            with torch.no_grad():
                return function()
        finally:
            self._member.busy_with = ""
            self._around.reporter.emit(WorkerBusy(worker=self._member.worker, what=""))

    def state(self) -> State:
        """Give what a joiner or a checkpoint needs, as of the last commit, sharing memory with it."""
        state = self._cared_for.state()
        buffers = {name: each for name, each in self._step.buffers_before().items() if name in state["model"]}
        return state | {"model": state["model"] | buffers, "step": self.step, "num_rows": self.num_rows, "seed": self._seed}

    def adopt(self, state: State) -> None:
        """Take over a state."""
        self.discard()
        self._cared_for.adopt(state)
        self.step, self.num_rows, self._seed = state["step"], state["num_rows"], state["seed"]
        self._saved_step = self.step

    def adopt_kept(self) -> None:
        """Take over the newest checkpoint of an earlier life of this run, if there is one."""
        if (state := self._around.checkpoints.newest()) is not None:
            self.adopt(state)

    def before_leave(self) -> None:
        """Call what the user wants before a voluntary leave."""
        for function in self._leave_hooks:
            function()

    def save(self, *, of_replica_0: bool = False) -> None:
        """Keep the state as of the last commit, unless it is kept already; returns while it is written.

        Args:
            of_replica_0: leave it to the first replica.
        """
        if of_replica_0 and self.rank >= self._member.group_size:
            return
        self._saved_s, self._saved_step = time.monotonic(), self.step
        if self.step:
            self._around.checkpoints.save(self.step, self.state)

    def saved(self) -> bool:
        """Wait until what was saved is on disk; False where that is full."""
        return self._around.checkpoints.finish()

    def _stored(self, dataset: Any) -> Any:
        """Have a function's Ray Dataset stored, once for all ranks, and give its path."""
        if not callable(dataset) or isinstance(dataset, Iterable) or hasattr(dataset, "__getitem__"):
            return dataset
        self._num_datasets += 1
        return self._around.stored_dataset(self._num_datasets, dataset)

    @property
    def num_parts_held(self) -> int:
        """How many of a step's micro-batches are in the gradients of this rank."""
        return self._step.num_parts_held

    def _begin(self, rows: Any, *, shared_in_group: bool, in_parts: bool) -> Cut:
        assert self._member.column is not None
        group_size = self._member.group_size
        cut = Cut(rank=self.rank, world_size=self.world_size, group_size=group_size, is_shared=shared_in_group)
        self._answered = self._save_wanted = False
        self._total = self._turns = None
        self._step.begin(self._member.column, cut, rows, in_parts=in_parts)
        self._draw_from(self.rank)
        return cut

    def _draw_from(self, place: int) -> None:
        drawn = hash((self._seed, self.step, place))
        torch.default_generator.manual_seed(drawn % 2**63)  # torch.manual_seed takes a millisecond to name its caller
        if self._member.device.type == "cuda":
            torch.cuda.manual_seed(drawn % 2**63)
        np.random.seed(drawn % 2**32)  # noqa: NPY002  (the global generator is what the user's code draws from)
        random.seed(drawn)

    def _in_parts(self, rows: Any, size: int, source: Source) -> Iterator[Any]:
        """Give this rank's micro-batches of a step, until the step is taken or broken, or is to go on in another world."""
        cut = [rows[at : at + size] for at in range(0, len(rows), size)]
        turns = self._turns = Turns(self._member, self._step, num_done=self.num_parts_done, num_parts=len(cut))
        self.commit()  # for who finds that the others do them all
        while self._turns is turns and (place := turns.next) is not None:
            self._answered = False
            self._draw_from(place)
            turns.begin(len(cut[place]))
            yield to_device(source.take(cut[place]), self._member.device)
            self._check_answered()
        if self._turns is turns and turns.is_cut_short:
            try:
                self._agreed = turns.hand_on()
                self.num_parts_done = turns.num_done
            except BrokenWorldError as exc:
                self._break(exc)
                self.discard()

    def _check_answered(self) -> None:
        if not self._answered:
            raise InputError("The loop's body ended without job.commit().", "Call it once for each batch.")

    def _break(self, error: BrokenWorldError) -> None:
        """Leave a world in which a peer is gone."""
        self._step.let_go()
        self._turns = None
        self._member.broke(str(error))

    def _sync(self, metrics: dict[str, Any], *, by_hand: bool = False) -> Tally:
        """Have the gradients and metrics of all ranks, and what they agree to."""
        member, group = self._member, self._member.standing
        told = Tally(
            may_enter_next=float(member.may_enter_next),
            stops=float(self._stop_wanted or member.stop_asked),
            saves=float(self.rank == 0 and self._save_is_due()),
            synced=float(by_hand),
        )
        with member.within("waiting"):
            total = self._step.sum(group, metrics, told)
            if not total.weight:
                raise InputError(f"All rows of step {self.step + 1} have weight 0.", "Give job.weight more for some of them.")
            if not self._step.has_rates_of(group, total):
                raise InputError(
                    f"The learning rate of step {self.step + 1} is not the same on all ranks, which would drift apart.",
                    "Give the scheduler to rk.elastic, or set the rate in each step, from job.step.",
                )
            means = self._step.average(group, total)
            self._agreed = total.may_enter_next == group.world_size and member.settle(
                [Proposal(*each) for each in group.gather([*member.propose()])]
            )
        self._stopping, self._save_wanted = total.stops > 0, total.saves > 0
        self._logged = means | self._logged
        self._total = total
        return total

    def _share(self, *, with_gradients: bool) -> None:
        assert self._member.column is not None
        with self._member.within("waiting"):
            bodiless.share(self._member.column, self._cared_for, ran=self._step.runs_body, with_gradients=with_gradients)

    def _save_is_due(self) -> bool:
        passed_s, steps = time.monotonic() - self._saved_s, self.step + 1 - self._saved_step
        return self._around.checkpoint_every.is_over(passed_s, steps)

    def _committed(self) -> None:
        if self.rank == 0:
            event = StepCommitted(
                step=self.step,
                epoch=self.epoch,
                num_rows=self.num_rows,
                total_steps=self._total_steps,
                metrics=self._logged,
                step_s=time.monotonic() - self._step.begun_s,
            )
            if self._turns is not None:
                self._turns.forget()
            first, reporter = self._member.first_commit(), self._around.reporter
            (reporter.emit(event) if first else reporter.sample("step", event))
        if self._save_wanted:
            self.save(of_replica_0=True)
        self._logged = {}


def _refuse_step(*_: Any, **__: Any) -> None:
    raise InputError(
        "optimizer.step() was called by hand: the ranks would drift apart.",
        "Call job.commit(loss=loss) instead; it steps all or none.",
    )


_refuse_step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]  # noqa: SLF001  (silences a scheduler's warning)
