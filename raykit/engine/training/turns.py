"""A step in micro-batches as one rank does it: its turns at them, until all are done, or the world is to change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raykit.engine.training.member import LEAVES, Member, Proposal
from raykit.engine.training.parts import Parts
from raykit.engine.training.step import Step

ASIDE_LOOK_S = 0.02  # how often a rank that gives way sees whether the others are done


class Turns:
    """A rank takes one micro-batch after the other, none while its slot is wanted, and ends early for who comes."""

    def __init__(self, member: Member, step: Step, *, num_done: int, num_parts: int) -> None:
        """Begin the step, or go on.

        Args:
            member: of the world that stands.
            step: what the micro-batches give.
            num_done: of them, in worlds before.
            num_parts: of the whole step.

        Raises:
            BrokenWorldError: the world does not stand any more.
        """
        self._member, self._step = member, step
        self._parts = Parts(member.standing.number(), num_done=num_done, num_parts=num_parts)
        self._is_in_pass = False

    @property
    def next(self) -> int | None:
        """The number of the micro-batch whose turn it is here, None where there is none."""
        return self._parts.next

    @property
    def is_cut_short(self) -> bool:
        """Whether the world is to change before the step's end."""
        return self._parts.is_closed

    @property
    def num_done(self) -> int:
        """How many micro-batches are known to be done; where it is cut short, how many are, once they are handed on."""
        return self._parts.num_known

    def begin(self, num_rows: int) -> None:
        """Begin the pass over the next one."""
        self._is_in_pass, self._step.runs_body = True, True
        self._step.weigh(float(num_rows))

    def is_through(self, metrics: Mapping[str, Any]) -> bool:
        """End the pass and have the next one, and say whether all of the step are taken; blocking while it gives way.

        Raises:
            BrokenWorldError: a peer is gone.
        """
        member, parts = self._member, self._parts
        if self._is_in_pass:
            self._is_in_pass = False
            if parts.is_open and not member.newcomers_have_met and not member.gives_way():
                parts.ask()  # it is answered while what the pass gave is added up
            self._step.end_part(metrics)
            parts.done()
        with member.within("waiting"):
            while parts.is_open and parts.next is None:
                if parts.is_asked:
                    parts.take()
                elif member.newcomers_have_met:
                    parts.close()
                elif member.gives_way():
                    parts.look()
                    member.wait_for_news(ASIDE_LOOK_S)
                else:
                    parts.take()
        return parts.is_over

    def hand_on(self) -> bool:
        """Leave what all hold of the step with one that stays; False, and it is held as before, if not all can enter one world.

        Raises:
            BrokenWorldError: a peer is gone.
        """
        member, group = self._member, self._member.standing
        with member.within("waiting"):
            told = group.gather([*member.propose(), self._parts.num_known])
            proposals = [Proposal(*proposal) for *proposal, _ in told]
            self._parts.num_known = max(num_known for *_, num_known in told)
            if not member.settle(proposals):
                return False
            heir = next((rank for rank, proposal in enumerate(proposals) if proposal != LEAVES), 0)
            self._step.leave_with(group, heir, self._parts.num_known)
        return True

    def forget(self) -> None:
        """Keep nothing of the step in the world's store: all ranks are done with it."""
        self._parts.forget()
