"""What happens to every run: its life, what it holds, what it prints, what is asked and decided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raykit.spec.priority import Priority

RunKind = Literal["task", "pipeline", "training", "service", "observed"]
EndState = Literal["done", "failed", "stopped", "lost"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAccepted:
    """The door took the run; its folder exists."""

    run_kind: RunKind
    folder: str
    stages: tuple[str, ...] = ()
    resumed: bool = False
    simulated_gpus: bool = False
    priority: Priority = "normal"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostStarted:
    """The run's host is there; a number above one says that it came back."""

    pid: int
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """The user's code began to run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunWaited:
    """The run cannot start yet, and why."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded:
    """The run is over. ``error`` is the sentence for the card when it did not end well."""

    state: EndState
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputReady:
    """A name that came back, as a file in the run's folder."""

    name: str
    file: str
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UserFailed:
    """The user's code raised; the traceback holds the user's frames only."""

    where: str
    error: str
    traceback_text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LinesPrinted:
    """What a worker printed, and how many lines were left out of the view (the file has them).

    ``open_lines`` are those that it is still writing, such as a bar's; they stand for all that were open before.
    """

    source: str
    lines: tuple[str, ...]
    num_dropped: int = 0
    open_lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotsHeld:
    """Slots went to ``holder``. They are logical: held, not used. ``group`` is the placement group that is held, if one is."""

    holder: str
    num_cpus: float
    num_gpus: float
    node: str = ""
    group: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotsReleased:
    """``holder`` gave back what it held."""

    holder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """A policy decided something: the decision's name, and what it is about."""

    decision: str
    about: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopAsked:
    """A person asked the run to end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillStarted:
    """Something is about to be broken on purpose; ``target`` says what."""

    action: str
    target: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillEnded:
    """The verdict of a drill."""

    action: str
    passed: bool
    verdict: str
