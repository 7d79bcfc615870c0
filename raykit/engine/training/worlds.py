"""The worlds of a training run as its host knows them: the one that it asked for last, and the one that stands."""

from __future__ import annotations

import time

from raykit.engine.training.worker import replica_of
from raykit.engine.training.world import Generation
from raykit.events import Event, StepCommitted, WorldBroken, WorldFormed

SETTLE_S = 1.0  # for so long at most a world's first step is spared the start of other workers


class Worlds:
    """What was asked for is named by its replicas, what stands by its workers, in the order of their ranks."""

    def __init__(self) -> None:
        self.asked: tuple[str, ...] = ()
        self.number = 0
        self.is_formed = self.must_hurry = False
        self.standing: tuple[str, ...] = ()
        self._is_urgent = False
        self._broken_at_s: float | None = None
        self._settles_until_s = 0.0
        self._standing_number: int | None = None  # not known where an earlier host may have seen it meet

    def take_up(self, latest: Generation, *, is_formed: bool, stood: tuple[str, ...]) -> None:
        """Go on from the world that an earlier host asked for last.

        Args:
            latest: that world.
            is_formed: whether its ranks are all in it.
            stood: the workers of the one that the log tells of.
        """
        self.asked = tuple(dict.fromkeys(map(replica_of, latest.workers)))
        self.number, self.is_formed, self._is_urgent = latest.number, is_formed, latest.urgent
        self.standing = latest.workers if is_formed else stood
        self._standing_number = latest.number if is_formed else None

    def ask(self, replicas: tuple[str, ...], *, urgent: bool) -> int:
        """Ask for the next one, and give its number; an urgent one is entered at once, another one after a commit."""
        self.asked, self._is_urgent = replicas, urgent
        self._broken_at_s, self.is_formed, self.must_hurry = None, False, False
        self.number += 1
        return self.number

    def lose_one(self) -> None:
        """Know that somebody of the world that stands is lost: it comes to no commit after which the next could be entered."""
        if not self.is_formed and not self._is_urgent:
            self.must_hurry = True

    def hear(self, event: Event, at_s: float) -> None:
        """Take in what was told at that time of a monotonic clock."""
        if isinstance(event, WorldBroken) and event.generation == self.number:
            self._broken_at_s = self._broken_at_s or at_s
        elif isinstance(event, WorldBroken) and self._is_stuck(event.generation):
            self.must_hurry = True
        elif isinstance(event, WorldFormed) and event.generation > (self._standing_number or 0):
            self._standing_number, self.standing = event.generation, event.workers
            if event.generation == self.number:
                self._broken_at_s, self.is_formed = None, True
                self._settles_until_s = at_s + SETTLE_S
        elif isinstance(event, StepCommitted):
            self._settles_until_s = 0.0

    @property
    def standing_replicas(self) -> set[str]:
        return {replica_of(worker) for worker in self.standing}

    @property
    def is_broken(self) -> bool:
        """Whether the world that was asked for last has broken."""
        return self._broken_at_s is not None

    @property
    def broken_for_s(self) -> float | None:
        return None if self._broken_at_s is None else time.monotonic() - self._broken_at_s

    @property
    def is_awaited(self) -> bool:
        """Whether the next world is entered after a commit of the one that stands."""
        return bool(self.standing) and not self._is_urgent and not self.must_hurry and not self.is_broken

    @property
    def is_settling(self) -> bool:
        """Whether a world has met a moment ago, and committed nothing yet."""
        return time.monotonic() < self._settles_until_s

    def _is_stuck(self, broken: int) -> bool:
        """Say whether the world is broken of which a commit is awaited; one that was replaced before it was entered is not."""
        return not self.is_formed and not self._is_urgent and self._standing_number in (None, broken)
