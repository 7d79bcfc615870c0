"""What a run of Ray Train has told so far: its last report as a file, its workers and worlds as the log has them."""

from __future__ import annotations

import pickle
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle

from raykit.engine.run import RunContext
from raykit.events import CheckpointSaved, Event, SlotsReleased, WorkerLost, WorkerStarted, WorldFormed
from raykit.store.log import Log
from raykit.views import RunView, fold_all

HOST_DIED = "the run's host died, and Ray Train's controller with it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the loop reported last, and the path of the newest checkpoint."""

    metrics: dict[str, Any]
    checkpoint: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """What earlier hosts of a run wrote down: how many workers it had, its worlds, the step of its newest checkpoint.

    ``farewell`` says of the workers of a host that died that they are gone with it.
    """

    num_workers: int
    generation: int
    checkpoint_step: int
    farewell: tuple[Event, ...]

    @staticmethod
    def of(context: RunContext) -> Earlier:
        """Read the run's log."""
        log = Log(context.cluster.log_path)
        try:
            records = list(log.read_all(run=context.name))
        finally:
            log.close()
        view = fold_all(RunView(name=context.name), records)
        events = [record.event for record in records]
        left: list[Event] = []
        if context.attempt > 1:
            left += [WorkerLost(worker=each.worker, rank=each.rank, cause=HOST_DIED) for each in view.ranks if not each.lost]
            left += [SlotsReleased(holder=slot.holder) for slot in view.held]
        return Earlier(
            num_workers=sum(isinstance(event, WorkerStarted) for event in events),
            generation=max((event.generation for event in events if isinstance(event, WorldFormed)), default=0),
            checkpoint_step=next((event.step for event in reversed(events) if isinstance(event, CheckpointSaved)), 0),
            farewell=tuple(left),
        )


def keep_report(storage: Path, report: Report) -> None:
    """Write a report in the place of the one before, in one move."""
    file = storage / "last-report.pkl"
    draft = file.with_suffix(".new")
    storage.mkdir(mode=0o700, exist_ok=True)
    draft.write_bytes(cloudpickle.dumps(report))  # a metric may be of a class of the user's own cell
    draft.replace(file)


def last_report(storage: Path) -> Report:
    """Give what was reported last, by whichever host's workers; an empty report where there was none."""
    with suppress(FileNotFoundError):
        report = pickle.loads((storage / "last-report.pkl").read_bytes())  # noqa: S301  (the controller's own)
        assert isinstance(report, Report)
        return report
    return Report(metrics={}, checkpoint=None)
