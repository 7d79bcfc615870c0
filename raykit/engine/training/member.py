"""A worker's part in the world: it waits to be told, meets the others, agrees with them, and leaves when they break."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from raykit.engine.training.collective import BrokenWorldError, Group
from raykit.engine.training.world import Generation
from raykit.policy.failure import Phase


class Adoptable(Protocol):
    """What a member carries from one to another: the job's state."""

    step: int

    def state_bytes(self) -> bytes: ...
    def adopt(self, data: bytes) -> None: ...
    def kept_state(self) -> bytes | None: ...


class Observer(Protocol):
    """Who wants to know how a member fares."""

    def is_ready(self) -> None: ...
    def has_formed(self, generation: Generation, step: int) -> None: ...
    def has_broken(self, generation: int, reason: str) -> None: ...


class Member:
    """One a worker process. The training thread calls ``align`` and ``broke``; the actor's thread calls ``assign``."""

    def __init__(self, worker: str, device: torch.device, observer: Observer) -> None:
        self.worker, self.device = worker, device
        self.group: Group | None = None
        self.generation = 0
        self.assigned: Generation | None = None
        self.stop_asked = False
        self.phase: Phase = "starting"
        self.busy_with = ""
        self.phase_since_s = time.monotonic()
        self._observer = observer
        self._told = threading.Condition()
        self._was_ready = False
        self._adopted = False
        self._commits = 0

    def assign(self, generation: Generation) -> None:
        """Take note of a world; one that is no newer than the last is ignored."""
        with self._told:
            if self.assigned is None or generation.number > self.assigned.number:
                self.assigned = generation
                self._told.notify_all()

    @property
    def sees_next(self) -> bool:
        """Whether a newer world was published, which all may enter after a commit at which all have seen it."""
        return self.assigned is not None and self.assigned.number > self.generation

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

    def broke(self, reason: str) -> None:
        """Leave a world in which a peer is gone, so that the others notice too."""
        if self.group is not None:
            self._leave()
            self._observer.has_broken(self.generation, reason)

    def align(self, job: Adoptable, *, agreed: bool) -> None:
        """Be in a world whose members stand at one step; blocking until there is one.

        Args:
            job: whose state is compared, given or taken.
            agreed: all ranks said at the last commit that they see the next world.
        """
        if not self._was_ready:
            self._was_ready = True
            self._observer.is_ready()
        while self.group is None or agreed or self._must_leave:
            agreed = False
            self._leave()
            with self.within("idle"), self._told:
                self._told.wait_for(lambda: self.sees_next)
                generation = self.assigned
            assert generation is not None
            self.generation = generation.number
            if self.worker not in generation.workers:
                self._adopted = False  # its state ages from here on
                continue
            try:
                with self.within("waiting"):
                    self._enter(generation, job)
            except BrokenWorldError as exc:
                self._leave()
                self._observer.has_broken(generation.number, str(exc))

    @property
    def _must_leave(self) -> bool:
        return self.sees_next and self.assigned is not None and self.assigned.urgent

    def _leave(self) -> None:
        if self.group is not None:
            self.group.close()
            self.group = None

    def _enter(self, generation: Generation, job: Adoptable) -> None:
        self.group = self._meet(generation, list(range(len(generation.workers))), "ranks")
        stands = self.group.gather([int(self._adopted), job.step])
        root = stands.index(max(stands))  # the furthest of those that have taken part; the first, when nobody has
        rank = self.group.rank
        if not stands[root][0] and rank == root and (kept := job.kept_state()) is not None:
            job.adopt(kept)
        behind = [each for each, stand in enumerate(stands) if each != root and (stand != stands[root] or not stand[0])]
        if behind and rank in (root, *behind):
            self._even_out(generation, [root, *behind], job)
        self._adopted, self._commits = True, 0
        self._observer.has_formed(generation, job.step)

    def _even_out(self, generation: Generation, ranks: list[int], job: Adoptable) -> None:
        """Give the first one's state to the others, in a group of their own: who has it already need not wait for it."""
        beside = self._meet(generation, ranks, "state")
        try:
            data = beside.broadcast(job.state_bytes() if beside.rank == 0 else None, 0)
        finally:
            beside.close()
        if beside.rank != 0:
            job.adopt(data)

    def _meet(self, generation: Generation, ranks: list[int], purpose: str) -> Group:
        return Group(
            port=generation.store_port,
            prefix=f"{generation.number}/{purpose}",
            rank=ranks.index(generation.workers.index(self.worker)),
            world_size=len(ranks),
            device=self.device,
            outdated=lambda: self.sees_next,
            given_up=lambda: self._must_leave,
        )
