"""Steps that come in micro-batches, which the ranks of a world take one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from raykit.engine.training import bodiless
from raykit.engine.training.member import Proposal
from raykit.engine.training.rendezvous import BrokenWorldError
from raykit.engine.training.rows import to_device
from raykit.engine.training.step import numbers_of
from raykit.engine.training.tally import Tally
from raykit.engine.training.turns import Turns
from raykit.errors import InputError

if TYPE_CHECKING:
    from raykit.engine.training.batches import Plan
    from raykit.engine.training.loop_state import LoopState


class MicroBatchLoop:
    """One step in micro-batches, as this rank takes part in it, in one world."""

    def __init__(self, loop: LoopState) -> None:
        self._loop = loop
        self._turns: Turns | None = None
        self._total: Tally | None = None
        self._is_answered = False

    def give(self, plan: Plan, rows: Any, step: int) -> Iterator[Any]:
        """Give this rank's micro-batches until the step is committed or broken, or is to be continued in another world."""
        loop, size = self._loop, plan.micro_batch
        assert size is not None
        loop.begin_parts(plan, rows)
        cut = [rows[at : at + size] for at in range(0, len(rows), size)]
        turns = self._turns = Turns(loop.member, loop.unit, num_done=loop.num_parts_done, num_parts=len(cut))
        self.commit({})  # for who finds that the others do them all
        while self._turns is turns and (place := turns.next) is not None:
            self._is_answered = False
            loop.draw_from(place, step)
            turns.begin(len(cut[place]))
            yield to_device(plan.source.take(cut[place]), loop.member.device)
            if not self._is_answered:
                raise InputError("The loop's body ended without job.commit().", "Call it once for each micro-batch.")
        if self._turns is turns and turns.is_cut_short:
            try:
                loop.agreed = turns.hand_on()
                loop.num_parts_done = turns.num_done
            except BrokenWorldError as exc:
                self._break_off(exc)

    def commit(self, metrics: dict[str, Any]) -> bool:
        """End a pass; after the step's last, take the step. Return whether it was taken."""
        self._is_answered = True
        turns = self._turns
        if turns is None:
            return False
        try:
            if not turns.is_through(metrics):
                return False
            total = self._total or self._sync(metrics)
            if total.bodiless:
                self._share(with_gradients=total.synced > 0)
        except BrokenWorldError as exc:
            self._break_off(exc)
            return False
        if self._loop.member.rank == 0:
            turns.forget()
        self._loop.take_parts()
        return True

    def sync(self, metrics: dict[str, Any]) -> bool:
        """Make the gradients final; return False where the pass is not the step's last here, or a peer was lost."""
        turns = self._turns
        if turns is None:
            return False
        try:
            if not turns.is_through(metrics):
                return False
            self._sync(metrics, by_hand=True)
        except BrokenWorldError as exc:
            self._break_off(exc)
            return False
        return True

    def _break_off(self, error: BrokenWorldError) -> None:
        self._turns = None
        self._loop.break_off(error)
        self._loop.discard()

    def _sync(self, metrics: dict[str, Any], *, by_hand: bool = False) -> Tally:
        """Sum the gradients and metrics of all ranks, and what they agree on."""
        loop, member, group = self._loop, self._loop.member, self._loop.member.standing
        told = Tally(
            may_enter_next=float(member.may_enter_next),
            stops=float(loop.stop_wanted or member.stop_asked),
            saves=float(member.rank == 0 and loop.save_is_due()),
            synced=float(by_hand),
        )
        with member.within("waiting"):
            total = loop.unit.sum(group, numbers_of(metrics), told)
            if not total.weight:
                raise InputError(f"All rows of step {loop.step + 1} have weight 0.", "Give job.weight more for some of them.")
            loop.check_rates(total)
            means = loop.unit.average(group, total)
            loop.agreed = total.may_enter_next == group.world_size and member.settle(
                [Proposal(*each) for each in group.gather([*member.propose()])]
            )
        loop.stopping, loop.save_wanted = total.stops > 0, total.saves > 0
        loop.logged = means | loop.logged
        self._total = total
        return total

    def _share(self, *, with_gradients: bool) -> None:
        loop, member = self._loop, self._loop.member
        assert member.column is not None
        with member.within("waiting"):
            bodiless.share(member.column, loop.cared_for, ran=loop.unit.runs_body, with_gradients=with_gradients)
