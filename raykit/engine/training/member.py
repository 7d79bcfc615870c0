"""A worker's part in the world: it waits to be told, meets the others, agrees with them, and leaves when they break."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, Protocol

import torch

from raykit.engine.training.collective import Group
from raykit.engine.training.meeting import Groups, Meeting
from raykit.engine.training.rendezvous import BrokenWorldError
from raykit.engine.training.state import State, given, size_of
from raykit.engine.training.world import Generation
from raykit.policy.failure import Phase

SMALL_STATE_BYTES = 4 * 2**20
LEAVERS_S = 0.25
"""A world that only loses ranks, which give their slots before it is met, is met so much later: one may soon be back."""


class Proposal(NamedTuple):
    """The number of a world that a rank can enter, and how many of the present one are in it."""

    number: int
    num_staying: int


WAITS = Proposal(0, 0)
LEAVES = Proposal(-1, 0)
"""The next world is one without the rank."""


class Adoptable(Protocol):
    """What a member carries from one to another: the job's state.

    ``position`` is how far the state is. ``prepared`` says that the next step is reduced and only its confirmation was missed:
    it can be rolled forward to ``next_position``, when another has committed it, or discarded, when nobody has. Of the next step ``num_parts_done`` micro-batches are done, and
    ``num_parts_held`` of them are in this one's gradients; as many as are done, all together hold, or somebody was lost.
    ``stopping`` says that the ranks of the last world agreed to end the loop at its last commit.
    """

    prepared: bool
    num_parts_done: int
    stopping: bool

    @property
    def step(self) -> int: ...
    @property
    def position(self) -> int: ...
    @property
    def next_position(self) -> int: ...
    @property
    def num_parts_held(self) -> int: ...

    def roll_forward(self) -> None: ...
    def discard(self) -> None: ...
    def state(self) -> State: ...
    def adopt(self, state: State) -> None: ...
    def adopt_kept(self) -> None: ...
    def before_leave(self) -> None: ...


class Observer(Protocol):
    """Who wants to know how a member fares."""

    def is_ready(self) -> None: ...
    def has_formed(self, generation: Generation, step: int) -> None: ...
    def has_broken(self, generation: int, reason: str) -> None: ...
    def stands_aside(self, generation: int) -> None: ...
    def has_left(self) -> None: ...


class Member:
    """One a worker process. The training thread calls ``align`` and ``broke``; the actor's thread ``assign`` and ``leave``."""

    def __init__(self, worker: str, device: torch.device, host: str, observer: Observer) -> None:
        self.worker, self.device = worker, device
        self.groups: Groups | None = None
        self.group_size = 1
        self.generation = 0
        self.assigned: Generation | None = None
        self._present: Generation | None = None
        self.is_final = False
        self.stop_asked = False
        self.phase: Phase = "starting"
        self.leaves_within_steps = False  # who is not in the next world has only to end what it does: the others do the rest
        self.busy_with = ""
        self.phase_since_s = time.monotonic()
        self._host, self._observer = host, observer
        self._told = threading.Condition()
        self._leave_asked = False
        self._was_ready = False
        self._adopted = False
        self._commits = self._invited = self._aside_for = 0
        self._meeting: Meeting | None = None
        self._proposed: Meeting | None = None

    def assign(self, generation: Generation) -> None:
        """Take note of a world; one that is no newer than the last is ignored."""
        with self._told:
            if self.assigned is not None and generation.number <= self.assigned.number:
                return
            if self._meeting is not None and self._meeting is not self._proposed:
                self._meeting.drop()
            self._meeting = None
            if self.worker in generation.workers:
                self._invited = generation.number
                if self.groups is not None and not generation.urgent:
                    after_s = LEAVERS_S if self.leaves_within_steps and set(generation.workers) < self._peers else 0.0
                    self._meeting = Meeting(generation, partial(self._meet, generation), after_s=after_s)
            self.assigned = generation
            self._told.notify_all()

    def leave(self) -> None:
        """Run what the user wants before a voluntary leave, once the training thread waits outside of every world."""
        with self._told:
            self._leave_asked = True
            self._told.notify_all()

    @property
    def group(self) -> Group | None:
        """What all ranks say to each other; None outside of every world."""
        return self.groups.everyone if self.groups else None

    @property
    def standing(self) -> Group:
        """The same, for who cannot do without.

        Raises:
            BrokenWorldError: outside of every world.
        """
        if self.group is None:
            raise BrokenWorldError("the world was left")
        return self.group

    @property
    def column(self) -> Group | None:
        """What those say to each other that hold the same part of the model."""
        return self.groups.column if self.groups else None

    @property
    def may_enter_next(self) -> bool:
        """Whether a newer world was published, and this rank has met its others or is not in it; all enter when all may."""
        meeting = self._meeting
        return self._sees_newer_than(self.generation) and (meeting is None or meeting.is_over)

    def _sees_newer_than(self, generation: int) -> bool:
        return self.assigned is not None and self.assigned.number > generation

    def gives_way(self) -> bool:
        """Say whether the next world is one without this rank, but with some of this one, and tell so.

        It has only to end what it has begun: they do the rest of the step.
        """
        following = self._following
        if following is None or self.worker in following.workers or not set(following.workers) & self._peers:
            return False
        self._tell_aside(following.number)
        return True

    @property
    def newcomers_have_met(self) -> bool:
        """Whether the next world has somebody whom this one has not, and all of it have come to meet."""
        following, meeting = self._following, self._meeting
        return bool(following and meeting and meeting.has_succeeded and not set(following.workers) <= self._peers)

    def propose(self) -> Proposal:
        """Say which world this rank can enter, for all to hear; it can until they have settled."""
        with self._told:
            following, meeting = self._following, self._meeting
            if following is not None and self.worker not in following.workers:
                return LEAVES
            if following is None or meeting is None or not meeting.is_over:
                return WAITS
            self._proposed = meeting
            return Proposal(following.number, len(set(following.workers) & self._peers))

    def settle(self, proposals: Sequence[Proposal]) -> bool:
        """Hear what all ranks have proposed, and say whether they enter the next world now: all of them the same."""
        staying = [each for each in proposals if each != LEAVES]
        agreed = len(set(staying)) <= 1 and all(each != WAITS and each.num_staying == len(staying) for each in staying)
        if not agreed:
            self._withdraw()
        return agreed

    def _withdraw(self) -> None:
        with self._told:
            if self._proposed is not None and self._proposed is not self._meeting:
                self._proposed.drop()
            self._proposed = None

    def wait_for_news(self, timeout_s: float) -> None:
        """Wait until another world is asked for, so long at most."""
        with self._told:
            self._told.wait(timeout_s)

    @property
    def _following(self) -> Generation | None:
        """The world that is to be entered once it has met; None where there is none, or it is entered at once."""
        following = self.assigned
        return None if following is None or following.number <= self.generation or following.urgent else following

    @property
    def _peers(self) -> set[str]:
        return set(self._present.workers) if self._present else set()

    def _tell_aside(self, generation: int) -> None:
        if self._aside_for != generation:
            self._aside_for = generation
            self._observer.stands_aside(generation)

    @property
    def rank(self) -> int:
        return self.group.rank if self.group else 0

    @property
    def place(self) -> int:
        """This rank's place in its replica."""
        return self.rank % self.group_size

    @contextmanager
    def within(self, phase: Phase) -> Iterator[None]:
        """Be in a phase for the block, and computing after it."""
        self.phase, self.phase_since_s = phase, time.monotonic()
        try:
            yield
        finally:
            self.phase, self.phase_since_s = "computing", time.monotonic()

    def first_commit(self) -> bool:
        """Count a commit, and say whether it is the first in this world."""
        self._commits += 1
        return self._commits == 1

    def confirm(self) -> None:
        """Know that every rank has reduced the step, before any of them takes it; nothing where replicas are single ranks.

        Single ranks can copy the furthest one's state. A replica of several ranks can not: two of them may be left each
        with a part of another step. So these commit in two phases, and who missed the second rolls forward.

        Raises:
            BrokenWorldError: a peer is gone.
        """
        if self.group_size > 1 and self.group is not None:
            with self.within("waiting"):
                self.group.wait(self.group.reduce(torch.zeros(1)))

    def broke(self, reason: str) -> None:
        """Leave a world in which a peer is gone, so that the others notice too."""
        self._withdraw()
        if self.groups is not None:
            self._leave(for_all=True)
            self._observer.has_broken(self.generation, reason)

    def align(self, job: Adoptable, *, agreed: bool) -> None:
        """Be in a world whose members stand at one step; blocking until there is one.

        Args:
            job: whose state is compared, given or taken.
            agreed: all ranks said at the last commit that they may enter the next world.
        """
        if not self._was_ready:
            self._was_ready = True
            self._observer.is_ready()
        while self.groups is None or agreed or self._must_leave:
            agreed = False
            if self._must_leave:
                self._withdraw()
            self._leave()
            generation = self._next_generation(job)
            self.generation, self.group_size = generation.number, generation.group_size
            if self.worker not in generation.workers:
                if self._adopted or self._invited > self._aside_for:
                    self._tell_aside(generation.number)
                self._adopted = False  # its state ages from here on
                continue
            try:
                with self.within("waiting"):
                    self._enter(generation, job)
            except BrokenWorldError as exc:
                self._leave()
                if not self._sees_newer_than(generation.number):  # else nothing that anybody waits for has broken
                    self._observer.has_broken(generation.number, str(exc))

    @property
    def _must_leave(self) -> bool:
        return self.assigned is not None and self.assigned.number > self.generation and self.assigned.urgent

    def _next_generation(self, job: Adoptable) -> Generation:
        with self.within("idle"):
            while True:
                with self._told:
                    if self._proposed is not None:
                        return self._proposed.generation
                    self._told.wait_for(lambda: self._sees_newer_than(self.generation) or self._leave_asked)
                    if self._sees_newer_than(self.generation):
                        assert self.assigned is not None
                        return self.assigned
                    self._leave_asked = False
                job.before_leave()
                self._observer.has_left()

    def _leave(self, *, for_all: bool = False) -> None:
        if self.groups is not None:
            self.groups.close(for_all=for_all)
        self.groups = None

    def _met(self, generation: Generation) -> Groups:
        """Give what was met of a world while this rank trained on, or meet now; blocking.

        Raises:
            BrokenWorldError: somebody did not come, or a newer world is published meanwhile.
        """
        with self._told:
            meeting = self._proposed or self._meeting
            if meeting is None or meeting.generation.number != generation.number:
                if self._sees_newer_than(generation.number):
                    raise BrokenWorldError("a newer world was published")
                meeting = self._meeting = Meeting(generation, partial(self._meet, generation))
        try:
            groups = meeting.groups()
        except BrokenWorldError:
            self._withdraw()  # what has failed to meet is proposed no more
            raise
        with self._told:
            if meeting.is_dropped:
                raise BrokenWorldError("a newer world was published")
            self._meeting = None if self._meeting is meeting else self._meeting
            self._proposed = None
        return groups

    def _enter(self, generation: Generation, job: Adoptable) -> None:
        self.groups = self._met(generation)
        column = generation.column_of(self.worker)
        ahead = job.next_position if job.prepared else job.position
        stops = int(job.stopping)
        mine = [int(self._adopted), job.position, ahead, size_of(job.state()), stops, job.num_parts_done, job.num_parts_held]
        told = self.groups.everyone.gather(mine)
        furthest = max((adopted, position) for adopted, position, *_ in told)
        if job.prepared:
            (job.roll_forward if furthest == (1, ahead) else job.discard)()
        # Where anybody has committed a step, all the others of the world had prepared it.
        stands = [(adopted, ahead if furthest == (1, ahead) else position) for adopted, position, ahead, *_ in told]
        root = next(rank for rank in column if stands[rank] == furthest)
        if not furthest[0] and self.rank == root:
            job.adopt_kept()
        behind = [rank for rank in column if rank != root and (stands[rank] != furthest or not furthest[0])]
        # To meet among themselves takes longer than a small state to travel; who has a large one already need not wait for it.
        taking_part = column if told[root][3] <= SMALL_STATE_BYTES else [root, *behind]
        if behind and self.rank in taking_part:
            with self._among(taking_part, generation) as group:
                state = given(group, job.state() if self.rank == root else None, root=taking_part.index(root))
            if self.rank in behind:
                job.adopt(state)
        in_step = [(done, held) for (*_, done, held), stand in zip(told, stands, strict=True) if stand == furthest and stand[0]]
        num_done, num_held = max((done for done, _ in in_step), default=0), sum(held for _, held in in_step)
        if num_done == num_held:
            job.num_parts_done = num_done
        else:
            job.discard()
        self._present = generation
        # A rank that joins has not taken part in the step after which the others agreed to stop, and would wait for them.
        self._adopted, self._commits, self.is_final = True, 0, generation.final or any(stops for *_, stops, _, _ in told)
        self._observer.has_formed(generation, job.step)

    @contextmanager
    def _among(self, ranks: list[int], generation: Generation) -> Iterator[Group]:
        """Give what ranks of this column say to each other: the column's group, or one that they meet in for the block."""
        if self.column is not None and ranks == generation.column_of(self.worker):
            yield self.column
            return
        group = self._meet_some(generation, ranks, f"state {ranks[0]}")
        try:
            yield group
        finally:
            group.close()

    def _meet(self, generation: Generation) -> Groups:
        everyone, column = list(range(len(generation.workers))), generation.column_of(self.worker)
        whole = self._meet_some(generation, everyone, "ranks")
        return Groups(
            everyone=whole, column=whole if column == everyone else self._meet_some(generation, column, f"column {column[0]}")
        )

    def _meet_some(self, generation: Generation, ranks: list[int], purpose: str) -> Group:
        return Group(
            store=generation.store,
            host=self._host,
            prefix=f"{generation.number}/{purpose}",
            rank=ranks.index(generation.workers.index(self.worker)),
            world_size=len(ranks),
            device=self.device,
            outdated=lambda: self._sees_newer_than(generation.number),
            given_up=lambda: self._must_leave,
        )
