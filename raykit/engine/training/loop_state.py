"""What a training loop has done so far on this rank, and how it goes on when ranks come, go and are lost."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raykit.engine.reporter import Reporter
from raykit.engine.training.backward import call_after_backward
from raykit.engine.training.batches import Plan
from raykit.engine.training.checkpoint import Checkpoints, newest_state
from raykit.engine.training.feed import Cut, min_rows
from raykit.engine.training.member import Member, Proposal
from raykit.engine.training.micro_batch_loop import MicroBatchLoop
from raykit.engine.training.progress import Progress
from raykit.engine.training.rendezvous import BrokenWorldError
from raykit.engine.training.rows import to_device
from raykit.engine.training.state import State, Stateful
from raykit.engine.training.step import Step, numbers_of
from raykit.engine.training.tally import Tally, is_one_value, names_of
from raykit.engine.training.user_calls import UserCalls
from raykit.errors import InputError
from raykit.events import StepCommitted, StepMeasured
from raykit.spec.training import Interval

MADE_EQUAL = 1e-6  # what ranks make of equal gradients may differ by this, relatively: they may have different GPUs
BODIES_TOGETHER = "On all ranks the loop's body has to run the same calls of backward, optimizer.step and job.commit."


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a worker gives to its job."""

    member: Member
    checkpoints: Checkpoints
    checkpoint_every: Interval
    reporter: Reporter
    group_size: int
    stored_dataset: Callable[[int, Callable[[], Any]], str]
    from_checkpoint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pending:
    """Metrics of the last step that are not summed yet, as sums over this rank's rows."""

    event: StepCommitted | None = None
    names: tuple[str, ...] = ()
    weight: float = 0.0
    sums: Sequence[float] = ()


NOTHING_PENDING = _Pending()


class LoopState:
    """The state of a training loop: model and all that changes with it, and the position of both in the data.

    A *unit* is the batches between two commits: mostly one, several where the loop adds up their gradients. A backward pass
    reduces gradients over the ranks before it returns; what the loop does with them then, and the calls that step optimizers
    and schedulers, happen alike on all ranks. If a peer is lost in a reduction the unit is void: the loop runs on to the end
    of the unit, its calls change nothing, and the unit's batches are given out again, divided among the ranks that are left.
    """

    def __init__(self, surroundings: Surroundings, cared_for: Stateful) -> None:
        self.around, self.member, self.cared_for = surroundings, surroundings.member, cared_for
        self.unit = Step(cared_for, group_size=surroundings.group_size)
        self.progress = Progress()
        self.calls = UserCalls(self, cared_for)
        self.seed = torch.initial_seed()
        self.epoch = self.num_rows = self.num_parts_done = 0
        self.prepared = False
        self.is_void = self.has_stepped = self.step_was_called = self.is_open = False
        self.stop_wanted = self.stopping = self.save_wanted = False
        self.agreed = self.all_may_enter = self.was_passed_over = False
        self.logged: dict[str, float] = {}
        self.ends: list[int] = []
        """The number of the batch after the last of each call of ``job.batches`` that has ended."""
        self.total_steps: int | None = None
        self._num_batches = self._num_unit_rows = self._num_backwards = 0
        self._has_reported = self.steps_itself = False
        self._synced: dict[str, float] = {}
        self._cut = Cut(rank=0, world_size=1)
        self._pending = NOTHING_PENDING
        self._is_first = False
        self._made: torch.Tensor | None = None
        self._saved_s, self._saved_step = time.monotonic(), 0
        self.micro_batches: MicroBatchLoop | None = None
        """The loop over the micro-batches of a step, where a step has them."""
        self._normalizes_batches = any(
            isinstance(each, torch.nn.modules.batchnorm._BatchNorm)  # noqa: SLF001  (the base of all of them)
            for each in cared_for.model.modules()
        )
        call_after_backward(self._after_backward)

    # What a member wants of it.

    @property
    def step(self) -> int:
        """The number of committed steps: batches that are in the model."""
        return self.progress.num_batches + (self._num_batches if self.has_stepped and not self.is_void else 0)

    @property
    def position(self) -> int:
        """A number that grows with the state."""
        return self.progress.number

    @property
    def next_position(self) -> int:
        """The position behind the unit that is prepared."""
        return self.progress.after(self._num_batches)

    @property
    def num_parts_held(self) -> int:
        """How many of a step's micro-batches are in the gradients of this rank."""
        return self.unit.num_parts_held

    def state(self) -> State:
        """Return what a joiner or a checkpoint needs, as of the last commit, sharing memory with it."""
        state = self.cared_for.state()
        buffers = {name: each for name, each in self.unit.buffers_before().items() if name in state["model"]}
        return state | {
            "model": state["model"] | buffers,
            "step": self.progress.num_batches,
            "calls": self.progress.num_calls,
            "num_rows": self.num_rows,
            "seed": self.seed,
            "ends": list(self.ends),
            "trained": self.unit.gradients.names(),
            "gradients": self.unit.gradients.kept(),
        }

    def adopt(self, state: State) -> None:
        """Take over a state."""
        self.discard()
        self.cared_for.adopt(state)
        self.unit.gradients.include(state.get("trained", []))
        self.unit.gradients.adopt(state.get("gradients", {}))
        self.progress.adopt(state["step"], state.get("calls", 0))
        self.num_rows, self.seed, self.ends = state["num_rows"], state["seed"], list(state.get("ends", []))
        self._saved_step = self.step

    def adopt_kept(self) -> None:
        """Take over the newest checkpoint of an earlier life of this run, or the model of the checkpoint that it begins with."""
        if (state := self.around.checkpoints.newest()) is not None:
            self.adopt(state)
        elif self.around.from_checkpoint:
            state = newest_state(self.around.from_checkpoint)
            if state is None:
                raise InputError(f"No checkpoint at {self.around.from_checkpoint} can be read.", "Give another one.")
            self.cared_for.adopt_model(state)

    def before_leave(self) -> None:
        """Call what the user wants before a voluntary leave."""
        for function in self.calls.leave_hooks:
            function()

    def roll_forward(self) -> None:
        """Commit the step that is prepared, of which this rank has missed the confirmation."""
        self.calls.step_all()
        self.unit.keep(clear_gradients=True)
        self.prepared, self.is_void, self.has_stepped = False, False, True
        self._close_unit()

    def discard(self) -> None:
        """Be as after the last commit."""
        self.unit.discard()
        self.calls.discard()
        if self.is_open:
            self.progress.begin_again()
        self.prepared = self.is_void = self.has_stepped = self.step_was_called = self.is_open = False
        self.num_parts_done = self._num_batches = self._num_unit_rows = 0

    @property
    def rows_committed(self) -> int:
        """The number of rows in the model."""
        return self.num_rows + (self._num_unit_rows if self.has_stepped and not self.is_void else 0)

    # The loop.

    def enter_world(self) -> bool:
        """Be in a world whose ranks stand at one step; blocking. Return False where the loop is to end."""
        self.member.align(self, agreed=self.agreed)
        self.agreed, self.stopping = False, self.stopping or self.member.is_final
        return not self.stopping

    def give_unit(self, plan: Plan, first: int) -> Iterator[Any]:
        """Give this rank's parts of batches, from the one after the last commit on, until the loop commits or is to redo them.

        Args:
            plan: where the rows come from.
            first: the number of the batch with which the plan begins.
        """
        self.open_unit()
        try:
            while (rows := plan.source.batch(self.progress.num_batches + self._num_batches - first)) is not None:
                yield self.begin_batch(plan, rows, first)
                self.end_body()
                if self.is_void and self.step_was_called:
                    break
                if self.has_stepped and not self.is_void:
                    break
        except GeneratorExit:  # the loop was left by break
            if self.has_stepped and not self.is_void:
                self._close_unit()
            raise
        if not self.is_void:
            self._close_unit()
            self._prepare_next_world(is_last=plan.source.batch(self.progress.num_batches - first) is None)
        elif not self.prepared:
            self.discard()

    def end_unit(self, *, is_last: bool) -> None:
        """End a unit of a framework's loop; blocking where the world may change, or it was the last."""
        if self.was_passed_over:
            self.is_open = self.was_passed_over = False
            return
        self._close_unit()
        self._prepare_next_world(is_last=is_last)

    def pass_over(self) -> None:
        """Skip what a framework's loop does to the unit from here on: the state that this rank has adopted contains it."""
        self.is_open = self.was_passed_over = True

    def give_parts(self, plan: Plan, rows: Any) -> Iterator[Any]:
        """Give this rank's micro-batches of the batch after the last commit, until it is committed or has to be redone."""
        self.micro_batches = MicroBatchLoop(self)
        try:
            yield from self.micro_batches.give(plan, rows, self.progress.num_batches)
        finally:
            self.micro_batches = None

    def begin_parts(self, plan: Plan, rows: Any) -> None:
        """Begin a step in micro-batches, or go on with it in another world."""
        assert self.member.column is not None
        self.progress.begin_unit()
        self.is_open, self.is_void, self.has_stepped, self._has_reported = True, False, False, False
        self._num_batches, self._num_unit_rows = 1, len(rows)
        self.unit.begin(self.member.column, self._cut_of(plan), rows, in_parts=True)

    def take_parts(self) -> None:
        """Commit the step, all of whose micro-batches are summed."""
        self.steps_itself = True
        self.calls.step_all()
        self.has_stepped = True
        self.unit.keep(clear_gradients=True)
        self.committed()
        self.num_parts_done = 0
        self._close_unit()

    def begin_batch(self, plan: Plan, rows: Any, first: int) -> Any:
        """Begin the pass over the batch that follows, and return this rank's part of it, on the device."""
        index = self.progress.num_batches + self._num_batches - first
        self.begin_pass(plan, rows, index + first)
        self.epoch = plan.source.epoch_of(index)
        mine = plan.ahead.take(index, self._cut) if plan.ahead else plan.source.take(self._cut.of(rows))
        return to_device(mine, self.member.device)

    def begin_pass(self, plan: Plan, rows: Any, batch: int) -> None:
        """Begin the pass over a batch, which has that number in the run."""
        if not self.is_void:
            assert self.member.column is not None
            self._cut = self._cut_of(plan)
            self.unit.begin(self.member.column, self._cut, rows, in_parts=False)
        self._num_unit_rows += len(rows)
        self._num_backwards = 0
        self._num_batches += 1
        self.draw_from(self.member.rank, batch)

    def take(self, plan: Plan, rows: Any, batch: int) -> Any:
        """Return this rank's part of a batch, on the device, as the world divides it now."""
        self.epoch = plan.source.epoch_of(batch)
        return to_device(plan.source.take(self._cut_of(plan).of(rows)), self.member.device)

    def end_body(self) -> None:
        """Note that the body has ended.

        Raises:
            InputError: the ranks' bodies did not do the same.
        """
        if not self.is_void and not self.unit.num_reductions and not self.unit.has_arrived:
            self.reduce(skipped=True)

    def draw_from(self, place: int, step: int) -> None:
        """Seed the generators of torch, numpy and Python from the run's seed, a step and a place in it."""
        drawn = hash((self.seed, step, place))
        torch.default_generator.manual_seed(drawn % 2**63)  # torch.manual_seed takes a millisecond to name its caller
        if self.member.device.type == "cuda":
            torch.cuda.manual_seed(drawn % 2**63)
        np.random.seed(drawn % 2**32)  # noqa: NPY002  (the global generator is what the user's code draws from)
        random.seed(drawn)

    # Reduction and commit.

    def reduce(self, *, skipped: bool = False) -> bool:
        """Reduce gradients over the ranks; blocking. Return False where a peer was lost: the unit is void then.

        Args:
            skipped: this rank's body had no backward pass.

        Raises:
            InputError: the ranks do not do the same; nothing counts.
        """
        try:
            self._reduce(skipped=skipped)
        except BrokenWorldError as exc:
            self.break_off(exc)
            return False
        return True

    def break_off(self, error: BrokenWorldError) -> None:
        """Leave a world in which a peer is gone; the unit is void."""
        self.is_void = True
        self.all_may_enter = False
        self.unit.let_go()
        self.member.broke(str(error))

    def commit(self, metrics: dict[str, Any]) -> bool:
        """Step all optimizers and schedulers, unless the loop has stepped optimizers itself; return whether that counts."""
        self.step_was_called = self.steps_itself = True
        if self.is_void:
            return False
        numbers = self._synced | numbers_of(metrics)
        if not self.has_stepped and not self.progress.next_is_done():
            if not self.is_reduced and not self.reduce():
                return False
            if not self._confirm():
                return False
            self.note_made()
            self.calls.step_all()
            self.progress.call_is_made()
            self.unit.keep(clear_gradients=True)
        self.has_stepped = True
        self.committed(numbers)
        return True

    def take_step(self, step: Callable[[], Any]) -> Any:
        """Call what steps an optimizer, once the gradients are reduced; it does nothing where the unit is void, or was done."""
        self.step_was_called = self.steps_itself = True
        if self.is_void:
            return None
        if self._has_reported:
            raise InputError(
                "An optimizer was stepped after job.commit(), which has stepped it.", "Leave one of them out, or commit last."
            )
        if self.around.group_size > 1:
            raise InputError(
                "optimizer.step() was called in a replica of several ranks, which commit in two phases.", "Call job.commit()."
            )
        if self.progress.next_is_done():
            self.has_stepped = True
            self.unit.restore_buffers()  # what the pass before it did to them is in the state
            return None
        if not self.is_reduced and not self.reduce():
            return None
        self.note_made()
        result = step()
        self.progress.call_is_made()
        self.has_stepped = True
        self.unit.keep(clear_gradients=False)
        return result

    def show(self, metrics: dict[str, Any]) -> None:
        """Report the means of these with the unit's commit."""
        self._synced = numbers_of(metrics)

    def sync(self, metrics: dict[str, Any]) -> bool:
        """Reduce gradients that are not, or that the loop has changed since; return False where a peer was lost."""
        self._synced = numbers_of(metrics)
        if self.is_void:
            return False
        return (self.is_reduced and not self.unit.gradients.were_touched) or self.reduce()

    def _confirm(self) -> bool:
        """Agree that all have reduced the step, where replicas are of several ranks."""
        self.prepared = self.around.group_size > 1
        try:
            self.member.confirm()
        except BrokenWorldError as exc:
            self.break_off(exc)
            return False
        self.prepared = False
        return True

    @property
    def is_reduced(self) -> bool:
        """Whether all gradients are reduced; those that the loop has set itself, without a backward pass, are not."""
        return self.unit.num_reductions > 0 and not self.unit.has_arrived

    def note_made(self) -> None:
        """Remember what the loop has made of gradients and parameters.

        The ranks compare what they have made of the reduced gradients with their next reduction.
        """
        self.unit.about_to_step()
        if self.around.group_size == 1 and self.unit.gradients.were_touched:
            self._made = self.unit.gradients.fingerprint()

    def committed(self, metrics: dict[str, float] | None = None) -> None:
        """Report the step; its metrics follow when they are summed, with the next reduction."""
        event = StepCommitted(
            step=self.step,
            epoch=self.epoch,
            num_rows=self.num_rows + self._num_unit_rows,
            total_steps=self.total_steps,
            metrics=self.logged,
            step_s=time.monotonic() - self.unit.begun_s,
        )
        self._is_first = self.member.first_commit()
        if metrics:
            names, weight = names_of(metrics), self.unit.weight
            sums = [metrics[name] * weight if weight else 0.0 for name in names]
            self._pending = _Pending(event=event, names=names, weight=weight, sums=sums)
        self.logged, self._synced, self._has_reported = {}, {}, True
        self._report("step", event)

    def _report(self, key: str, event: StepCommitted | StepMeasured) -> None:
        if self.member.rank == 0:
            reporter = self.around.reporter
            (reporter.emit(event) if self._is_first else reporter.sample(key, event))

    def save(self, *, of_replica_0: bool = False) -> None:
        """Keep the state as of the last commit, unless it is kept already; returns while it is written.

        Args:
            of_replica_0: leave it to the first replica.
        """
        if of_replica_0 and self.member.rank >= self.member.group_size:
            return
        self._saved_s, self._saved_step = time.monotonic(), self.progress.num_batches
        if self.progress.num_batches:
            self.around.checkpoints.save(self.progress.num_batches, self.state)

    def save_is_due(self) -> bool:
        """Return whether it is time for a checkpoint."""
        passed_s, steps = time.monotonic() - self._saved_s, self.step + 1 - self._saved_step
        return self.around.checkpoint_every.is_over(passed_s, steps)

    def _after_backward(self) -> None:
        if not self.is_open or self.is_void or not self.unit.has_arrived:
            return
        self.unit.gradients.backward_began()
        if self.micro_batches is not None:
            self.unit.pass_ended()
        elif self.unit.awaits_reduction:
            self.reduce()

    def _reduce(self, *, skipped: bool) -> None:
        member, group = self.member, self.member.standing
        self._num_backwards += 1
        place = float(hash((*self.progress.place, self._num_batches, self._num_backwards, self.unit.gradients.num_trained)) % 2**20)
        pending, made = self._pending, self._made
        told = Tally(
            may_enter_next=float(member.may_enter_next),
            stops=float(self.stop_wanted or member.stop_asked),
            saves=float(member.rank == 0 and self.save_is_due()),
            skipped=float(skipped),
            place=place,
            place_squared=place**2,
            num_made=float(made is not None),
            made=0.0 if made is None else float(made),
            metric_weight=pending.weight,
            sums=pending.sums,
        )
        with member.within("waiting"):
            total = self.unit.reduce(group, told)
        self._check(total, group.world_size)
        with member.within("waiting"):
            assert member.column is not None
            self.unit.reduce_unfrozen(group, member.column, total)
        if made is not None and abs(total.made / total.num_made - float(made)) > MADE_EQUAL * abs(float(made)):
            raise InputError(
                f"The gradients of step {self.step} were not the same on all ranks after the loop had changed them: "
                "the ranks would drift apart.",
                "Change them alike on all ranks: draw noise from a generator that job.step seeds; gradients that were set by "
                "torch.autograd.grad after a backward are reduced by job.sync().",
            )
        self._made = None
        self._measured(total)
        self.stopping, self.save_wanted = total.stops > 0, self.save_wanted or total.saves > 0
        self.all_may_enter = total.may_enter_next == group.world_size

    def _check(self, total: Tally, num_ranks: int) -> None:
        where = f"step {self.step + 1}"
        if 0 < total.skipped < num_ranks:
            raise InputError(
                f"In {where} the loop's body ended without job.commit() or backward on {total.skipped:.0f} of {num_ranks} ranks.",
                "Run backward on every rank: job.weight(0) before it leaves the rank's rows out.",
            )
        if not is_one_value(total.place, total.place_squared, num_ranks):
            raise InputError(f"In {where} the ranks are not at one place of the loop.", BODIES_TOGETHER)
        if not total.skipped and not total.weight:
            raise InputError(f"All rows of {where} have weight 0.", "Give job.weight more for some of them.")
        self.check_rates(total)

    def check_rates(self, total: Tally) -> None:
        """Raise InputError if the optimizers' settings are not the same on all ranks."""
        if not self.unit.has_rates_of(self.member.standing, total):
            raise InputError(
                f"The learning rate of step {self.step + 1} is not the same on all ranks (or another setting of an optimizer), "
                "which would drift apart.",
                "Give the scheduler to rk.elastic, or set the rate in each step, from job.step.",
            )

    def _measured(self, total: Tally) -> None:
        """Report the metrics of the last step."""
        pending, self._pending = self._pending, NOTHING_PENDING
        if total.metric_weight and (step := pending.event) is not None:
            assert step.epoch is not None
            assert step.num_rows is not None
            means = total.means(pending.names)
            self._report("metrics", StepMeasured(step=step.step, epoch=step.epoch, num_rows=step.num_rows, metrics=means))

    def open_unit(self) -> None:
        """Begin a unit, with the batch after the last commit."""
        self.progress.begin_unit()
        self.unit.begin_unit()
        self.is_open, self.has_stepped, self.step_was_called, self._has_reported = True, False, False, False
        self._num_batches = self._num_unit_rows = 0

    def _close_unit(self) -> None:
        """Note that the batches of the unit are in the model, or in the gradients that the loop goes on to add to."""
        if self.has_stepped and not self._has_reported:
            self.committed(self._synced)
        self.num_rows += self._num_unit_rows
        self.progress.finish(self._num_batches)
        self.unit.end_unit()
        self.is_open = self.has_stepped = False
        self._num_batches = self._num_unit_rows = 0
        if self.save_wanted:
            self.save_wanted = False
            self.save(of_replica_0=True)

    def _prepare_next_world(self, *, is_last: bool) -> None:
        """Agree on entering the next world, if all can; before that, and behind the last batch, sum what no step will sum."""
        member = self.member
        if not (self.all_may_enter or self.stopping or is_last):
            return
        may_enter, self.all_may_enter = self.all_may_enter, False
        try:
            with member.within("waiting"):
                self.sum_metrics()
                self.agreed = may_enter and member.settle([Proposal(*each) for each in member.standing.gather([*member.propose()])])
        except BrokenWorldError as exc:
            self.unit.let_go()
            member.broke(str(exc))

    def sum_metrics(self) -> None:
        """Sum the metrics of the last step over the ranks; blocking.

        Raises:
            BrokenWorldError: a peer is gone.
        """
        vector = Tally(metric_weight=self._pending.weight, sums=self._pending.sums).vector()
        group = self.member.standing
        group.wait(group.reduce(vector))
        self._measured(Tally.of(vector))

    def _cut_of(self, plan: Plan) -> Cut:
        group_size = self.member.group_size
        if plan.is_undivided:
            return Cut(rank=self.member.place, world_size=group_size, group_size=group_size, is_shared=True)
        world_size = self.member.group.world_size if self.member.group else group_size
        return Cut(
            rank=self.member.rank,
            world_size=world_size,
            group_size=group_size,
            is_shared=plan.shared_in_group,
            min_rows=min_rows(plan.batch_size, max(1, world_size // group_size), normalizes_batches=self._normalizes_batches),
        )
