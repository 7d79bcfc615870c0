"""What a person, or the arbiter, asks of a run that goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """End at the next commit or batch and keep what is there."""

    run: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Drill:
    """Break something on purpose, and judge how the run mends it."""

    run: str
    action: Literal["kill-worker", "hang", "kill-host", "kill-node"] = "kill-worker"
    after_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize:
    """Train on another number of ranks from the next commit on."""

    run: str
    workers: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Apply:
    """Do to a pipeline what its newest advice says."""

    run: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lend:
    """Have no more than so many ranks for the sake of another run, or as many as were asked for again (None).

    ``hands_on``: slots that are given for that go to the borrower itself, which holds such slots too; else back to Ray.
    """

    run: str
    borrower: str
    max_workers: int | None
    hands_on: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Hurry:
    """Take slots as soon as they come: another run has given some back."""

    run: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldSlot:
    """A placement group that Ray has placed, by its id: the nodes of its bundles, and what these have together."""

    group: str
    nodes: tuple[str, ...]
    num_cpus: float
    num_gpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Take:
    """Hold a slot that another run has held; after ``by_unix_s`` it is to go back to Ray."""

    run: str
    slot: HeldSlot
    by_unix_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """Go on with the newest version that was asked for."""

    run: str


Command = Stop | Drill | Resize | Apply | Lend | Hurry | Take | Update
