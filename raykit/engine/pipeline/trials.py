"""Changes of a stage's calls that are tried on a few of them before they are advised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from raykit.decisions import StageChange
from raykit.engine.pipeline.calls import Report, Way
from raykit.engine.run import RunContext
from raykit.events import Decided
from raykit.spec import StageSpec

CALLS = 3
MOST_CALLS = 9  # where none, or too few, are of whole batches


@dataclass(slots=True, kw_only=True)
class Trial:
    """``row_s`` is what a row cost before. The first call of each replica is not counted: it may have to warm up.

    Nor are calls with the last rows of a span, if there are others: a short batch costs a row more than a whole one.
    """

    change: StageChange
    row_s: float
    warm: set[str] = field(default_factory=set)
    calls: list[tuple[int, float]] = field(default_factory=list)

    @property
    def relative(self) -> float | None:
        """What a row costs, of what it cost before; None while too few calls tell it."""
        at_once = self.change.batch_size or self.change.concurrency or 1
        whole = [call for call in self.calls if call[0] >= at_once]
        if len(whole) < CALLS and len(self.calls) < MOST_CALLS:
            return None
        rows, taken_s = map(sum, zip(*(whole or self.calls), strict=True))
        return taken_s / rows / self.row_s


class Trials:
    """One at a time. What is known is the cost with a change relative to that before it, None where it failed."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._now: Trial | None = None
        self._found: dict[StageChange, float | None] = {}

    @property
    def is_trying(self) -> bool:
        return self._now is not None

    def known(self, works_s: Mapping[str, float | None]) -> dict[StageChange, float | None]:
        """Give what is known of changes, as seconds of a replica for a row of the source.

        Args:
            works_s: what each stage costs now.
        """
        return {
            change: None if relative is None or (work_s := works_s.get(change.stage)) is None else relative * work_s
            for change, relative in self._found.items()
        }

    def begin(self, change: StageChange, row_s: float) -> None:
        """Try a change on the stage's next calls; a row costs it ``row_s`` now."""
        self._now = Trial(change=change, row_s=row_s)
        about = (change.stage, *(f"{name} {value:g}" for name, value in change.fields.items()))
        self._context.emit(Decided(decision="Try", about=about, reason="it may be faster so"))

    def way(self, spec: StageSpec) -> tuple[Way, bool]:
        """Say how the next call of a stage is made, and whether that is a trial."""
        way = way_of(spec)
        if self._now is None or self._now.change.stage != spec.name:
            return way, False
        change = self._now.change
        tried = Way(
            batch_size=change.batch_size or way.batch_size,
            concurrency=change.concurrency or way.concurrency,
            num_threads=change.num_threads or way.num_threads,
        )
        return tried, True

    def take_in(self, replica: str, report: Report) -> None:
        """Count a call that was a trial."""
        if self._now is None:
            return
        if replica not in self._now.warm:
            self._now.warm.add(replica)
            return
        self._now.calls.append((report.rows_in, report.taken_s))
        if (relative := self._now.relative) is not None:
            self._found[self._now.change] = relative
            self._now = None

    def failed(self) -> None:
        """Know that a call failed which was a trial: the change will not be advised."""
        if self._now is not None:
            self._found[self._now.change] = None
            self._now = None

    def forget(self, stage: str) -> None:
        """Know nothing more of a stage that works otherwise now."""
        self._found = {change: relative for change, relative in self._found.items() if change.stage != stage}
        if self._now is not None and self._now.change.stage == stage:
            self._now = None


def way_of(spec: StageSpec) -> Way:
    """Give how a stage's calls are made."""
    return Way(batch_size=spec.batch_size, concurrency=spec.concurrency, num_threads=spec.num_threads)
