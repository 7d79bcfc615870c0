"""What raykit's runs hold, as Ray's own arbiter is told of it.

Ray Train and Ray Data share a cluster by what each claims with a coordinator, an actor that the first of them starts. It
counts all that nobody has claimed as free: beside slots of raykit, elastic training of Ray Train would decide for ever on a
group that cannot be placed (Ray 2.60).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import ray

Bundle = dict[str, float]

COORDINATOR = "AutoscalingCoordinator"  # its name and its namespace
CLAIMANT = "raykit"
EXPIRE_S, AGAIN_S = 30.0, 10.0


@dataclass(frozen=True, slots=True)
class First:
    """A priority above those that Ray knows (10 at most): what is held is not to be shared."""

    value: int = 100


class Claims:
    """Keeps the coordinator's knowledge of raykit's slots up to date, where there is a coordinator."""

    def __init__(self) -> None:
        self._told: tuple[str, Sequence[Bundle]] | None = None
        self._told_s = 0.0

    def tell(self, held: Sequence[Bundle]) -> None:
        """Claim what is held, and no more what is not; waits for no answer, and says it again after ``AGAIN_S``."""
        if not held and self._told is None:
            return
        try:
            coordinator = ray.get_actor(COORDINATOR, namespace=COORDINATOR)
        except ValueError:
            self._told = None
            return
        told = coordinator._actor_id.hex(), held  # noqa: SLF001
        if told == self._told and time.monotonic() - self._told_s < AGAIN_S:
            return
        if held:
            coordinator.request_resources.remote(
                requester_id=CLAIMANT, resources=list(held), expire_after_s=EXPIRE_S, priority=First()
            )
        else:
            coordinator.cancel_request.remote(CLAIMANT)
        self._told, self._told_s = (told if held else None), time.monotonic()
