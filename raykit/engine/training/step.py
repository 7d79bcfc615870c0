"""A step on one rank: what its passes give, and what that comes to over all ranks."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from raykit.engine.training.buffers import Buffers
from raykit.engine.training.collective import Group, Reducer
from raykit.engine.training.feed import Cut
from raykit.engine.training.gradients import Gradients
from raykit.engine.training.parameters import Parameters
from raykit.engine.training.parts import Accumulated
from raykit.engine.training.state import Stateful
from raykit.engine.training.tally import Tally, is_one_value, names_of
from raykit.errors import InputError

RATES_EQUAL = 1e-6  # beyond what a sum over ranks may round


class Step:
    """Gradients, metrics and buffers, weighted by the rows that they are of, and reduced over the ranks.

    A step is reduced at the end of each of its backward passes, most of it while backward still runs; or it comes in
    micro-batches ("parts"), of which nobody knows which is the last: these are added up first.
    """

    def __init__(self, cared_for: Stateful, *, group_size: int) -> None:
        model = cared_for.model
        self._model, self._optimizers, self._group_size = model, cared_for.optimizers, group_size
        self._cared_for, self._num_stepped = cared_for, 0
        self._parameters = Parameters(model)
        self.gradients = Gradients(model)
        self._reducer, self._accumulated, self._buffers = self._new_reducer(), Accumulated(), Buffers(model)
        self._gradient_scale = 1.0
        if group_size > 1:  # a plain model stays one that can be copied and pickled
            model.register_forward_hook(self._scale_gradients)
        self._cut = Cut(rank=0, world_size=1)
        self._weight = self._replica_weight = 0.0
        self._stands_in = False
        self._names: tuple[str, ...] = ()
        self._is_begun = self._is_in_parts = False
        self.runs_body = False
        self.num_rows = 0
        self.num_reductions = 0
        """How often the batch was reduced."""
        self.begun_s = time.monotonic()

    def begin_unit(self) -> None:
        """Remember gradients and buffers as the last commit and the user's code since then have left them."""
        self._look_for_new()
        self.gradients.begin()
        self._parameters.begin()
        if len(self.gradients.parameters) != self._reducer.num_parameters:
            self._reducer.detach()
            self._reducer = self._new_reducer()
        self._buffers.begin()
        self._is_begun, self.begun_s = True, time.monotonic()

    def begin(self, column: Group, cut: Cut, rows: Any, *, in_parts: bool) -> None:
        """Be ready for the passes over a batch, or for those that are left of a step in another world.

        Args:
            column: of the ranks that hold the same part of the model.
            cut: of this rank.
            rows: of the global batch.
            in_parts: which pass is the last is not known before it is over.
        """
        if not self._is_begun:
            self.begin_unit()
            if in_parts:
                self._reducer.clear()
        self._cut, self._is_in_parts, self.runs_body, self.num_rows = cut, in_parts, False, len(rows)
        self._weight, self._replica_weight = cut.weight(rows), cut.replica_weight(rows)
        self._stands_in = self._replica_weight == 0
        self.num_reductions = 0
        self._reducer.has_arrived = False
        self._reducer.begin(column, self._replica_weight, in_parts=in_parts)
        self._set_weights()

    def weigh(self, rows: float) -> None:
        """Count the pass as a mean over so many rows; before backward, and in a replica of several ranks by all of them.

        A rank that runs the body on another's rows counts for nothing all the same.

        Raises:
            InputError: it is negative.
        """
        if rows < 0:
            raise InputError(f"The weight of a pass is {rows:g}.", "Give over how many rows its loss is a mean.")
        if self._stands_in and not self._is_in_parts:
            rows = 0.0
        self._weight = self._replica_weight = rows
        if self._is_in_parts:
            return
        if self._group_size > 1:
            ours = torch.tensor(rows)
            torch.distributed.all_reduce(ours)
            self._replica_weight = float(ours)
        self._set_weights()

    @contextmanager
    def unreduced(self) -> Iterator[None]:
        """Have backward only add to the gradients.

        Raises:
            InputError: the step comes in parts, of which each does so.
        """
        if self._is_in_parts:
            raise InputError("job.accumulate() is used where batches gives micro-batches.", "Leave it, or micro_batch, out.")
        self._reducer.enabled = False
        try:
            yield
        finally:
            self._reducer.enabled = True

    @property
    def awaits_reduction(self) -> bool:
        """Whether a backward pass has ended whose gradients have to be reduced now."""
        return self._reducer.has_arrived and self._reducer.enabled

    @property
    def has_arrived(self) -> bool:
        """Whether backward has given gradients since they were reduced."""
        return self._reducer.has_arrived

    def reduce(self, group: Group, told: Tally) -> Tally:
        """Make the gradients means over the rows of all ranks, and the buffers equal; blocking.

        Args:
            group: of all ranks.
            told: of this rank, summed beside the gradients. With ``skipped`` the rank takes part and gives nothing.

        Returns:
            The sums. If no rank gave anything nothing is changed here.

        Raises:
            BrokenWorldError: a peer is gone; the gradients are void.
        """
        self._look_for_new()
        if told.skipped:
            self._reducer.set_weight(0.0)
        ours = 0.0 if told.skipped else self._weight
        signature = float(self._buffers.signature)
        told = replace(told, weight=ours, rates=self._rates(), buffers=signature, buffers_squared=signature**2)
        total = self._sum(group, told)
        self._reducer.has_arrived = False
        self.num_reductions += 1
        if total.weight:
            self._average(group, ours, total)
            self.gradients.note_reduced()
        return total

    def reduce_unfrozen(self, group: Group, column: Group, total: Tally) -> None:
        """Reduce the gradients of parameters that are trained since the step began; blocking.

        Raises:
            BrokenWorldError: a peer is gone.
        """
        if not (unfrozen := self.gradients.unfrozen()) or not total.weight:
            return
        reducer = Reducer(unfrozen, sparse=self.gradients.sparse)
        reducer.begin(column, self._replica_weight)
        reducer.finish(group, torch.zeros(1))
        reducer.write_back(total.weight)
        reducer.detach()
        self.gradients.note_reduced()

    def end_part(self, metrics: Mapping[str, Any]) -> None:
        """Add up what a pass over a micro-batch has given.

        Raises:
            InputError: the body has changed its gradients, which are only a part of the step's.
        """
        self.gradients.check_untouched()
        self._accumulated.add(self._weight, numbers_of(metrics))
        self._reducer.add(self._weight)

    def pass_ended(self) -> None:
        """Note that a backward pass over a micro-batch has ended."""
        self._reducer.has_arrived = False
        self.gradients.note_reduced()

    @property
    def num_parts_held(self) -> int:
        """How many parts are in the gradients of this rank."""
        return self._accumulated.num_parts

    def sum(self, group: Group, metrics: Mapping[str, Any], told: Tally) -> Tally:
        """Sum what the micro-batches of all ranks have given; blocking.

        Args:
            group: of all ranks.
            metrics: of this rank's pass; only their names matter here.
            told: to be summed beside what this step knows itself.

        Raises:
            BrokenWorldError: a peer is gone.
        """
        self._names, weight = self._accumulated.names or names_of(metrics), self._accumulated.weight
        signature = float(self._buffers.signature)
        ours = replace(
            told,
            weight=weight,
            metric_weight=weight,
            bodiless=float(not self.runs_body),
            rates=self._rates() if self.runs_body else 0.0,
            buffers=signature,
            buffers_squared=signature**2,
            sums=self._accumulated.sums,
        )
        return self._sum(group, ours)

    def has_rates_of(self, group: Group, total: Tally) -> bool:
        """Return whether the optimizers' settings are here what they are on all ranks on which the body ran."""
        num_ranks = group.world_size - total.bodiless
        return (self._is_in_parts and not self.runs_body) or math.isclose(
            total.rates / num_ranks, self._rates(), rel_tol=RATES_EQUAL
        )

    def average(self, group: Group, total: Tally) -> dict[str, float]:
        """Make the gradients of micro-batches means over the rows of all ranks; blocking.

        Returns:
            The means of the metrics.

        Raises:
            BrokenWorldError: a peer is gone.
        """
        self._average(group, self._accumulated.weight, total)
        return total.means(self._names)

    def leave_with(self, group: Group, heir: int, num_parts: int) -> None:
        """Leave what all ranks hold of the step, which is so many parts, with one of them; blocking.

        Raises:
            BrokenWorldError: a peer is gone.
        """
        total = self.sum(group, {}, Tally())
        if group.rank == heir:
            self._accumulated.hold(num_parts, total.weight, total.sums)
        else:
            self._accumulated.hold(0, 0.0, ())
            self._reducer.clear()

    def let_go(self) -> None:
        """Give up what is on its way in a world that is broken."""
        self._reducer.let_go()

    def about_to_step(self) -> None:
        """Note that the optimizers are about to step."""
        self._parameters.about_to_step()

    def keep(self, *, clear_gradients: bool) -> None:
        """Note that the optimizers have stepped."""
        self._buffers.begin()
        self._parameters.begin()
        if clear_gradients:
            for optimizer in self._optimizers:
                optimizer.zero_grad(set_to_none=True)

    def restore_buffers(self) -> None:
        """Put the buffers back as the last commit left them."""
        self._buffers.restore()

    def end_unit(self) -> None:
        """Note that the step is committed: the next pass begins another."""
        self._accumulated.hold(0, 0.0, ())
        self._is_begun = False

    def discard(self) -> None:
        """Be as before the step."""
        self._buffers.restore()
        if self._is_begun:
            self.gradients.restore()
            if self._group_size == 1:  # the ranks of a larger replica hold parts, which FSDP writes to itself
                self._parameters.restore()
        self.end_unit()

    def buffers_before(self) -> dict[str, torch.Tensor]:
        """Return the buffers as the last commit left them, by name; none before the first step."""
        return self._buffers.as_committed()

    @property
    def weight(self) -> float:
        """How many rows the pass counts for."""
        return self._weight

    def _look_for_new(self) -> None:
        """Look for parameters that were added to the model, if an optimizer was given some."""
        num_stepped = sum(len(group["params"]) for optimizer in self._optimizers for group in optimizer.param_groups)
        if num_stepped != self._num_stepped:
            self._num_stepped = num_stepped
            self._cared_for.check_owned()
            self.gradients.look_for_new()
            self._parameters = Parameters(self._model)
            self._parameters.begin()

    def _new_reducer(self) -> Reducer:
        return Reducer(self.gradients.parameters, sparse=self.gradients.sparse)

    def _sum(self, group: Group, told: Tally) -> Tally:
        vector = told.vector()
        self._reducer.finish(group, vector)
        return Tally.of(vector)

    def _average(self, group: Group, weight: float, total: Tally) -> None:
        is_same = is_one_value(total.buffers, total.buffers_squared, group.world_size)
        self._buffers.reduce(group, weight, total.weight, is_same_everywhere=is_same)
        self._reducer.write_back(total.weight)

    def _rates(self) -> float:
        settings = (
            value
            for optimizer in self._optimizers
            for group in optimizer.param_groups
            for name, value in group.items()
            if name not in {"params", "initial_lr"}
        )
        return math.fsum(each for each in settings if isinstance(each, int | float))

    def _set_weights(self) -> None:
        self._reducer.set_weight(self._replica_weight)
        ours = self._replica_weight / self._group_size
        self._gradient_scale = 1.0 if self._cut.is_shared or not ours else self._weight / ours

    def _scale_gradients(self, _: Any, __: Any, output: Any) -> None:
        """Weigh what goes back into the model: FSDP takes the plain mean over a replica's ranks, whatever rows they had."""
        if self._gradient_scale != 1.0 and torch.is_grad_enabled():
            scale = self._gradient_scale
            tree_map_only(torch.Tensor, lambda each: each.requires_grad and each.register_hook(lambda grad: grad * scale), output)


def numbers_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return metrics as floats: of numbers of any kind, and of tensors and arrays of one element.

    Raises:
        InputError: one is something else; it is named.
    """
    return {name: _number(name, value) for name, value in metrics.items()}


def _number(name: str, value: Any) -> float:
    try:
        if isinstance(value, torch.Tensor):
            value = value.detach().item()
        elif hasattr(value, "item") and getattr(value, "size", 1) == 1:  # numpy's
            value = value.item()
        if not isinstance(value, str | bytes):
            return float(value)
    except (TypeError, ValueError, RuntimeError):
        pass
    kind = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"{type(value).__name__} {value!r:.60}"
    raise InputError(f"The metric {name!r} is {kind}.", "Give a number, or a tensor of one element.")
