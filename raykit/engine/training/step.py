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
from raykit.engine.training.parts import Accumulated
from raykit.engine.training.state import Stateful
from raykit.engine.training.tally import Tally, names_of
from raykit.errors import InputError

RATES_EQUAL = 1e-6  # beyond what a sum over ranks may round


class Step:
    """Gradients, metrics and buffers, weighed by the rows that they are of, and summed over the ranks.

    A step is one pass, reduced while backward still runs, or comes in parts that are added up first.
    """

    def __init__(self, cared_for: Stateful, *, group_size: int) -> None:
        model = cared_for.model
        parameters = [each for each in model.parameters() if each.requires_grad]
        self._optimizers, self._group_size = cared_for.optimizers, group_size
        self._reducer, self._accumulated, self._buffers = Reducer(parameters), Accumulated(), Buffers(model)
        self._untrained = [(name, each) for name, each in model.named_parameters() if not each.requires_grad]
        self._gradient_scale = 1.0
        if group_size > 1:  # a plain model stays one that can be copied and pickled
            model.register_forward_hook(self._scale_gradients)
        self._cut = Cut(rank=0, world_size=1)
        self._weight = self._replica_weight = 0.0
        self._names: tuple[str, ...] = ()
        self._is_begun = self._is_in_parts = False
        self.runs_body = False
        self.num_rows = 0
        self.begun_s = time.monotonic()

    def begin(self, column: Group, cut: Cut, rows: Any, *, in_parts: bool) -> None:
        """Be ready for the step's passes, or for those that are left of it in another world.

        Args:
            column: of the ranks that hold the same part of the model.
            cut: of this rank.
            rows: of the global batch.
            in_parts: which pass is the last is not known before it is over.
        """
        self._cut, self._is_in_parts, self.runs_body, self.num_rows = cut, in_parts, False, len(rows)
        self._weight, self._replica_weight = cut.weight(rows), float(len(cut.of_replica(rows)))
        self._reducer.begin(column, self._replica_weight, in_parts=in_parts)
        self._set_weights()
        if not self._is_begun:
            self._is_begun, self.begun_s = True, time.monotonic()
            self._buffers.begin()
            if in_parts:
                self._reducer.clear()

    def weigh(self, rows: float) -> None:
        """Count the pass as a mean over so many rows; before backward, and in a replica of several ranks by all of them.

        Raises:
            InputError: it is negative.
        """
        if rows < 0:
            raise InputError(f"The weight of a pass is {rows:g}.", "Give over how many rows its loss is a mean.")
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

    def end_part(self, metrics: Mapping[str, Any]) -> None:
        """Add up what a pass has given."""
        self._accumulated.add(self._weight, {name: _number(value) for name, value in metrics.items()})
        self._reducer.add(self._weight)

    @property
    def num_parts_held(self) -> int:
        """How many parts are in the gradients of this rank."""
        return self._accumulated.num_parts

    def sum(self, group: Group, metrics: Mapping[str, Any], told: Tally) -> Tally:
        """Have what all ranks have given; blocking.

        Args:
            group: of all ranks.
            metrics: of this rank's pass; those of parts are added up already.
            told: to be summed beside what this step knows itself.

        Raises:
            BrokenWorldError: a peer is gone.
            InputError: a parameter has a gradient that is not reduced.
        """
        if woken := [name for name, each in self._untrained if each.grad is not None]:
            raise InputError(
                f"{woken[0]} has a gradient, and did not want one when rk.elastic was called: the ranks would drift apart.",
                "Call rk.elastic while all that is ever trained has requires_grad; freeze afterwards what is to rest.",
            )
        if self._is_in_parts:
            self._names, weight, sums = self._accumulated.names, self._accumulated.weight, self._accumulated.sums
        else:
            self._names, weight = names_of(metrics), self._weight
            sums = [_number(value) * weight if weight else 0.0 for value in metrics.values()]
        rates = self._rates() if self.runs_body else 0.0
        vector = replace(told, weight=weight, bodiless=float(not self.runs_body), rates=rates, sums=sums).vector()
        self._reducer.finish(group, vector)
        return Tally.of(vector)

    def has_rates_of(self, group: Group, total: Tally) -> bool:
        """Say whether the learning rates are here what they are on all ranks on which the body ran."""
        num_ranks = group.world_size - total.bodiless
        return not self.runs_body or math.isclose(total.rates / num_ranks, self._rates(), rel_tol=RATES_EQUAL)

    def average(self, group: Group, total: Tally) -> dict[str, float]:
        """Make the gradients means over the rows of all ranks, and give those of the metrics; blocking.

        Those of the buffers wait for ``keep``.

        Raises:
            BrokenWorldError: a peer is gone.
        """
        ours = self._accumulated.weight if self._is_in_parts else self._weight
        self._buffers.reduce(group, ours, total.weight)
        self._reducer.write_back(total.weight)
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

    def keep(self) -> None:
        """The optimizers have stepped."""
        self._buffers.keep()
        self._end()

    def discard(self) -> None:
        """Be as before the step."""
        self._buffers.restore()
        self._end()

    def buffers_before(self) -> dict[str, torch.Tensor]:
        """Give the buffers as the step found them, by name; none where there is no step."""
        return self._buffers.as_committed()

    def _end(self) -> None:
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        self._accumulated.hold(0, 0.0, ())
        self._is_begun = False

    def _rates(self) -> float:
        rates = (group["lr"] for optimizer in self._optimizers for group in optimizer.param_groups if "lr" in group)
        return math.fsum(each for each in rates if isinstance(each, int | float))

    def _set_weights(self) -> None:
        self._reducer.set_weight(self._replica_weight)
        ours = self._replica_weight / self._group_size
        self._gradient_scale = 1.0 if self._cut.is_shared or not ours else self._weight / ours

    def _scale_gradients(self, _: Any, __: Any, output: Any) -> None:
        """Weigh what goes back into the model: FSDP takes the plain mean over a replica's ranks, whatever rows they had."""
        if self._gradient_scale != 1.0 and torch.is_grad_enabled():
            scale = self._gradient_scale
            tree_map_only(torch.Tensor, lambda each: each.requires_grad and each.register_hook(lambda grad: grad * scale), output)


def _number(value: Any) -> float:
    return float(value.detach()) if isinstance(value, torch.Tensor) else float(value)
