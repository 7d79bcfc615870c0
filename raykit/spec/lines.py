"""The words and options of the magics that are no specs: which cluster or run is meant, and how to look at it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raykit.errors import OptionError
from raykit.spec.options import check_range, count, counts, names, one_or_range, option, seconds, variables, words
from raykit.spec.priority import Priority, check_priority, priority_option

DRILLS = ("kill-worker", "hang", "kill-host", "kill-node")


@dataclass(frozen=True, slots=True, kw_only=True)
class NoWords:
    """It takes no words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterLine:
    """Which cluster is meant."""

    name: str | None = option("NAME", default=None, help="the cluster; the current one if not given", read=str)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleLine:
    """Let a cluster have another number of nodes."""

    name: str | None = option("NAME", default=None, help="the cluster", read=str)
    num_nodes: int | tuple[int, int] = option("NODES", default=0, help="3, or 2:8 as runs need them", read=one_or_range)

    def __post_init__(self) -> None:
        if self.name is None or self.num_nodes == 0:
            raise OptionError("A cluster and a number of nodes are needed.", "Write %ray scale NAME 3, or %ray scale NAME 2:8.")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLine:
    """Which run is meant."""

    name: str = option("RUN", default="", help="the run; NAME means the newest of NAME, NAME#2, ...", read=str)

    def __post_init__(self) -> None:
        if not self.name:
            raise OptionError("No run is named.", "Name one; %ray runs lists them.")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogsLine(RunLine):
    """What the workers of a run printed, whole."""

    source: str = option("--source", default="", help="one worker, stage replica or cell only, as w1", read=str)
    tail: int = option("--tail", default=200, help="lines of each", read=count, metavar="N")


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillLine:
    """Break something of a run on purpose, and see how the run mends it."""

    action: Literal["kill-worker", "hang", "kill-host", "kill-node"] = option(
        "ACTION", default="", help=" or ".join(DRILLS), read=str
    )
    name: str = option("RUN", default="", help="the run", read=str)
    after_s: float = option("--after", default=0.0, help="so long after the first committed step", read=seconds, metavar="10s")

    def __post_init__(self) -> None:
        if self.action not in DRILLS:
            raise OptionError(f"There is no drill {self.action!r}.", f"There are: {', '.join(DRILLS)}.")
        if not self.name:
            raise OptionError("No run is named.", "Name one: %ray drill kill-worker RUN")

    @property
    def said(self) -> str:
        """What is answered to who asked."""
        when = f"{self.after_s:g} s after now or after its first step"
        return f"{self.action} will strike {self.name}, {when}; the verdict becomes a card of its view."


@dataclass(frozen=True, slots=True, kw_only=True)
class ObserveLine:
    """Show plain Ray Data code of this kernel as it executes."""

    what: Literal["data", "off"] = option("WHAT", default="", help="data, or off to observe no more", read=str)

    def __post_init__(self) -> None:
        if self.what not in ("data", "off"):
            raise OptionError(f"There is no {self.what!r} to observe.", "Write %ray observe data, or %ray observe off.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeLine:
    """Let a training run go on with another number of ranks; no step is lost."""

    name: str = option("RUN", default="", help="the run", read=str)
    workers: tuple[int, int] = option("MIN:MAX", default=(0, 0), help="ranks: 2, or 1:4 for one to four", read=counts)

    def __post_init__(self) -> None:
        if not self.name:
            raise OptionError("No run is named.", "Name one: %ray resize RUN 1:4")
        check_range("MIN:MAX", *self.workers, least=1)

    @property
    def said(self) -> str:
        """What is answered to who asked."""
        least, most = self.workers
        ranks = f"{least} to {most} ranks" if least != most else "1 rank" if most == 1 else f"{most} ranks"
        return f"{self.name} goes on with {ranks} from a commit on, as slots allow."


@dataclass(frozen=True, slots=True, kw_only=True)
class Viewing:
    """Where a cell runs, and whether it waits."""

    on: str | None = option("--on", default=None, help="the cluster; the current one if not given", read=str, metavar="CLUSTER")
    detach: bool = option("--detach", default=False, help="give the prompt back at once; %%ray watch brings the view")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variables:
    """Variables of the environment of a run's processes. They are no part of its spec: some are secrets."""

    env: tuple[tuple[str, str | None], ...] = option(
        "--env", default=(), read=variables, metavar="A=B,C",
        help="variables of the environment: A with this value, C with the kernel's own",
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeLine:
    """Serve the stage of this cell, or of another one, over HTTP."""

    name: str = option("NAME", default="", help="how the service is called; as its stage if not given", read=str)
    stage: str = option("--stage", default="", help="a stage of another cell; that of this cell if not given", read=str)
    replicas: tuple[int, int] = option(
        "--replicas", default=(1, 1), help="how many, or least:most; as many as its requests need", read=counts, metavar="0:4"
    )
    slo_s: float = option("--slo", default=1.0, help="how soon requests shall be answered", read=seconds, metavar="200ms")
    warm: int | None = option(
        "--warm", default=None, help="how many more are built ahead and hold no slot; 1 where --replicas has a range", read=count
    )
    priority: Priority = priority_option(default="high")  # noqa: RUF009  (it makes a field)


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineLine:
    """Run the stages of this cell, or of other cells, on a source."""

    name: str = option("NAME", default="pipeline", help="how the run is called", read=str)
    source: str = option(
        "--source", default="", help="a name of the notebook (iterable, function that makes rows or a Dataset) or a path", read=str
    )
    format: str = option(
        "--format", default="", read=str, metavar="WORD",
        help="of the files at a path, where names do not say it: parquet, csv, json, images, text or binary",
    )  # fmt: skip
    encoding: str = option("--encoding", default="", help="of files of text; UTF-8 if not given", read=str, metavar="latin-1")
    separator: str = option(
        "--separator", default="", help="between the fields of CSV files; found if not given", read=str, metavar="';'"
    )
    as_text: tuple[str, ...] = option(
        "--as-text", default=(), help="columns of CSV files that stay text, as zip,phone", read=words, metavar="COLUMN,.."
    )
    stages: tuple[str, ...] = option(
        "--stages", default=(), help="stages of other cells, in order; those of this cell if not given", read=names
    )
    limit: int | None = option("--limit", default=None, help="take only the first N rows of the source", read=count, metavar="N")
    output: str = option("-o", default="", help="a name for the result, or a path for its Parquet parts", read=str)
    priority: Priority = priority_option()  # noqa: RUF009  (it makes a field)

    def __post_init__(self) -> None:
        check_priority(self.priority)
