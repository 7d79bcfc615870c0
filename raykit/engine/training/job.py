"""The training loop as the user sees it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.data import default_collate

from raykit.engine.training.batches import Batches, Plan
from raykit.engine.training.loop_state import LoopState
from raykit.engine.training.rows import Counted, Sampled, loaded, prefetched, source_of
from raykit.engine.training.step import numbers_of
from raykit.engine.training.stored import StoredBlocks, as_it_is
from raykit.errors import InputError
from raykit.events import WorkerBusy
from raykit.spec import SourceSpec
from raykit.store.files import path_source, resolved


class Job:
    """A training loop that goes on when workers come and go.

    Each step draws its random numbers (torch's, numpy's and Python's) from (seed, step, rank), so that a step which is
    done again is the same step.
    """

    def __init__(self, loop: LoopState) -> None:
        self._loop, self._member = loop, loop.member
        self._num_calls = self._num_epochs = self._num_datasets = self._end = 0

    @property
    def rank(self) -> int:
        """This process's place among the ranks, from zero on."""
        return self._member.rank

    @property
    def world_size(self) -> int:
        """How many ranks train now; it changes when ranks come and go."""
        return self._member.group.world_size if self._member.group else 1

    @property
    def step(self) -> int:
        """How many steps are committed: batches that are in the model."""
        return self._loop.step

    @property
    def epoch(self) -> int:
        """The epoch of the present batch, from zero on, over all calls of :meth:`batches`."""
        return self._loop.epoch

    @property
    def num_rows(self) -> int:
        """How many rows all committed steps have seen, on all ranks together."""
        return self._loop.rows_committed

    def batches(
        self,
        dataset: Any,
        *,
        batch_size: int | None = None,
        epochs: int = 1,
        seed: int = 0,
        num_workers: int = 0,
        prefetch: int = 2,
        drop_last: bool = False,
        shared_in_group: bool = False,
        micro_batch: int | None = None,
        collate_fn: Callable[[list[Any]], Any] = default_collate,
    ) -> Batches:
        """Give out this rank's part of each global batch, on the device, until ``epochs`` are committed.

        Every rank runs the loop's body for every batch. A step that a loss broke is given out again, divided anew; the body
        may therefore run twice for one step.

        A short last batch (or any, of more ranks than rows) is divided among fewer ranks, so that no rank gets fewer than two
        rows, where it gets as many of other batches; with a batch norm in the model it never gets fewer. A rank for which none
        are left runs the body on rank 0's rows, and what it computes counts for nothing.

        With ``micro_batch`` the part comes in several, each of so many rows, and the body runs for each: gradients add up,
        and ``commit`` takes the step after the last. Ranks take them one after the other, so who is fast does more, and who
        finds all taken does not run the body. A rank whose slot is wanted gives it after the micro-batch that it is in, and
        one that comes takes part from the next one on. Which random numbers a micro-batch draws does not depend on who does
        it. What the body does to gradients has to wait for the whole step: ``if job.sync(): clip_grad_norm_(...)``.

        Args:
            dataset: a map-style dataset, a list, a dict or tuple of arrays, a DataFrame or an Arrow table; a path or URL of
                files, or ``rk.files`` of one (rows of other formats than Parquet are stored once, in the run's folder); a function that makes a Ray Dataset (called once in the run, its rows stored in the run's
                folder); an iterable, of which each rank goes through all rows, in its own order, and which must give them
                in the same order each time; or a ``DataLoader``, whose dataset, batches (of its sampler, which every rank
                asks), ``collate_fn`` and ``drop_last`` are taken over, ``num_workers`` as well for a map-style dataset. Its
                ``batch_size`` is that of the global batch.
            batch_size: of the global batch, whatever the world size.
            epochs: how often each row is seen. Later calls count on, and shuffle otherwise.
            seed: of the order of rows; a ``DataLoader`` with a ``generator`` has its own.
            num_workers: processes that take rows ahead of their step, as in a ``DataLoader``.
            prefetch: batches that each of them is ahead.
            drop_last: leave out the last batch of an epoch if it is short.
            shared_in_group: all ranks of a replica get the same rows, as tensor parallel wants it; else (FSDP) each its own.
            micro_batch: rows of each pass through the body; not with ``num_workers``, or replicas of several ranks.
            collate_fn: makes a batch of a list of rows, as in a ``DataLoader``: pads texts, say.

        Raises:
            InputError: the data is of no known form or empty; an option does not go with it; later, from the loop: the ranks
                do not do the same and would drift apart.
        """
        if isinstance(dataset, torch.utils.data.DataLoader):
            if batch_size is not None or collate_fn is not default_collate or drop_last:
                raise InputError(
                    "A DataLoader was given with batch_size, collate_fn or drop_last, of which it has its own.",
                    "Give these to the DataLoader, or its dataset to job.batches.",
                )
            source, batch_size, num_workers, prefetch = loaded(
                dataset, epochs=epochs, seed=seed, first_epoch=self._num_epochs, num_workers=num_workers, prefetch=prefetch
            )
        elif batch_size is None or batch_size < 1 or epochs < 1:
            raise InputError(f"batch_size is {batch_size}, epochs is {epochs}.", "Give at least 1 of each.")
        else:
            source = source_of(
                self._stored(dataset),
                batch_size=batch_size,
                epochs=epochs,
                seed=seed,
                collate=collate_fn,
                drop_last=drop_last,
                first_epoch=self._num_epochs,
            )
        if micro_batch is not None and (micro_batch < 1 or num_workers or self._member.group_size > 1):
            raise InputError(
                f"micro_batch is {micro_batch}, with {num_workers} num_workers, in replicas of {self._member.group_size} ranks.",
                "Give at least 1, no num_workers, and replicas of one rank (--group 1).",
            )
        return self._given_out(
            Plan(
                source=source,
                batch_size=batch_size,
                epochs=epochs,
                what=type(dataset).__name__,
                shared_in_group=shared_in_group,
                micro_batch=micro_batch,
                ahead=prefetched(source, num_workers, prefetch, dataset),
            )
        )

    def steps(self, number: int) -> Batches:
        """Give out the numbers of ``number`` steps, from zero on, for a loop that makes its own data.

        Every rank runs the body for every step, with random numbers of its own, and all ranks count alike. A step that a loss
        broke is given out again.

        Raises:
            InputError: ``number`` is below 1.
        """
        if number < 1:
            raise InputError(f"{number} steps were asked for.", "Give at least 1.")
        return self._given_out(Plan(source=Counted(number), batch_size=1, epochs=1, what="number of steps", is_undivided=True))

    def commit(self, **metrics: Any) -> bool:
        """Step optimizers and schedulers with the gradients as the loop has left them, on all ranks or on none.

        Gradients are means over the global batch since ``backward``; what the loop has done to them since then counts. Where
        the loop has called ``optimizer.step()`` itself, ``commit`` only reports metrics.

        Args:
            metrics: numbers of any kind, or tensors of one element. Their means over the global batch are shown.

        Returns:
            Whether the step is committed. When a peer was lost it is not, and ``batches`` gives the batch again; nor is it
            after a micro-batch that is not the last.

        Raises:
            InputError: a metric is no number; there is no step, since the loop takes no batches of ``job.batches``.
        """
        loop = self._loop
        if loop.micro_batches is not None:
            return loop.micro_batches.commit(metrics)
        self._check_open("job.commit()")
        return loop.commit(metrics)

    def sync(self, **metrics: Any) -> bool:
        """Reduce gradients that the loop has set itself, without ``backward``; of micro-batches, make the step's final.

        After ``backward`` gradients are reduced already, and this changes nothing.

        Returns:
            False when a peer was lost, or the micro-batch is not the step's last: call commit still.
        """
        loop = self._loop
        if loop.micro_batches is not None:
            return loop.micro_batches.sync(metrics)
        self._check_open("job.sync()")
        return loop.sync(metrics)

    def weight(self, rows: float) -> None:
        """Say, before backward, over how many rows the loss is a mean, when it is not over the batch's.

        In replicas of several ranks all of them have to say it.
        """
        self._loop.unit.weigh(float(rows))

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """Run backward without reducing, as DDP's ``no_sync``; a backward outside of the ``with`` reduces the sum.

        Raises:
            InputError: ``batches`` gives micro-batches already.
        """
        with self._loop.unit.unreduced():
            yield

    def log(self, **values: Any) -> None:
        """Show numbers with the next commit, as this rank has them (rank 0's are shown).

        Raises:
            InputError: a value is no number.
        """
        self._loop.logged |= numbers_of(values)

    def stop(self) -> None:
        """End all ranks together, after the commit that follows their next backward."""
        self._loop.stop_wanted = True

    def on_leave(self, function: Callable[[], None]) -> None:
        """Call ``function`` when this rank has left the world because the run was made smaller, before its process ends.

        It has ten seconds, and the world's last committed state before its eyes.
        """
        self._loop.calls.leave_hooks.append(function)

    def evaluate(self, function: Callable[[], Any]) -> Any:
        """Run ``function`` on rank 0 (or its whole replica) while the others wait at their next backward; they get None."""
        if self.rank >= self._member.group_size:
            return None
        reporter = self._loop.around.reporter
        self._member.busy_with = f"evaluate ({getattr(function, '__name__', 'function')})"
        reporter.emit(WorkerBusy(worker=self._member.worker, what=self._member.busy_with))
        try:
            with torch.no_grad():
                return function()
        finally:
            self._member.busy_with = ""
            reporter.emit(WorkerBusy(worker=self._member.worker, what=""))

    def _check_open(self, what: str) -> None:
        if not self._loop.is_open:
            raise InputError(
                f"{what} was called outside of job.batches: there is no step that could be redone after a loss.",
                "Take the batches from job.batches(...), or steps without data from job.steps(n).",
            )

    def _given_out(self, plan: Plan) -> Batches:
        number, self._num_calls = self._num_calls, self._num_calls + 1
        self._num_epochs += plan.epochs
        return Batches(self._run(plan, number), plan)

    def _run(self, plan: Plan, number: int) -> Iterator[Any]:
        """Give out the batches of the call of ``batches`` with that number."""
        loop, first = self._loop, self._end
        self._member.leaves_within_steps = plan.micro_batch is not None
        num_steps = plan.source.num_steps()
        loop.total_steps = None if num_steps is None else first + num_steps
        has_run = False
        try:
            while loop.enter_world():
                if len(loop.ends) > number:  # this rank has joined behind it
                    self._pass_by(plan, first, loop.ends[number])
                    return
                rows = plan.source.batch(loop.progress.num_batches - first)
                if rows is None:
                    break
                has_run = True
                yield from loop.give_parts(plan, rows) if plan.micro_batch else loop.give_unit(plan, first)
        finally:
            self._ends(number)
        if loop.stopping:
            loop.save(of_replica_0=True)
        elif loop.progress.num_batches == first:
            raise InputError(f"The {plan.what} gave no rows.", "Give at least one row, and of drop_last one whole batch.")
        elif has_run and not loop.steps_itself:
            raise InputError("The loop ended without optimizer.step() or job.commit().", "Call one of them in the loop's body.")

    def _pass_by(self, plan: Plan, first: int, end: int) -> None:
        """Go behind a loop that ended before this rank joined; a sampler with a generator of its own has to draw for it."""
        if isinstance(plan.source, Sampled):
            plan.source.batch(end - first)
        self._end = end
        self._loop.progress.pass_by(end)

    def _ends(self, number: int) -> None:
        """Note that the call of ``batches`` of that number has ended, at its last row or by ``break``.

        One that was stopped has not: a run that is resumed begins there.
        """
        loop = self._loop
        if len(loop.ends) == number and not loop.stopping:
            loop.ends.append(loop.progress.num_batches)
            self._end = loop.progress.num_batches
            loop.progress.pass_by(self._end)

    def _stored(self, dataset: Any) -> Any:
        """Have a function's Ray Dataset stored once for all ranks, and files whose rows have no index; return what was stored."""
        if isinstance(dataset, str | os.PathLike):
            dataset = path_source(os.fspath(dataset))
        if isinstance(dataset, SourceSpec):
            dataset = resolved(dataset)
            if dataset.left_out and self.rank == 0:
                print(f"Of {dataset.label} is not read, as no {dataset.format}: {dataset.left_out}.")  # noqa: T201  (into its log)
            if dataset.format == "parquet":
                return dataset
            self._num_datasets += 1
            return StoredBlocks.at(self._loop.around.stored_dataset(self._num_datasets, partial(as_it_is, dataset)))
        if not callable(dataset) or isinstance(dataset, Iterable) or hasattr(dataset, "__getitem__"):
            return dataset
        self._num_datasets += 1
        return self._loop.around.stored_dataset(self._num_datasets, dataset)
