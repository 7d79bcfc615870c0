"""What comes of an advice that is applied, as a person sees it beside what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from raykit.engine.pipeline.adviser import Adviser
from raykit.engine.pipeline.calls import Report
from raykit.engine.pipeline.meter import Meter
from raykit.engine.pipeline.trials import Trials
from raykit.engine.run import RunContext
from raykit.engine.setting import ClusterSetting
from raykit.errors import RunError
from raykit.events import AdviceApplied, AdviceMeasured, Advised, Event
from raykit.policy.advice import StageUse
from raykit.policy.balance import Resources, StageLoad

NODES = [Resources(num_cpus=12)]


class Pipeline:
    """A stage that takes a tenth of a second a row, and an adviser that looks at it."""

    def __init__(self, folder: Path) -> None:
        self.events: list[Event] = []
        setting = ClusterSetting(name="c", address="", port=0, token_file="", folder=str(folder))
        context = RunContext(
            name="r",
            spec=None,
            cluster=setting,
            emit=lambda *events: self.events.extend(events),
            attempt=1,
            resumed=False,
            host=None,
        )
        self._meter = Meter(1)
        self.adviser = Adviser(context, self._meter, Trials(context), ())

    def looks(self, now_s: float, *, rows: int, replicas: int, most: int) -> None:
        """Have so many rows come through, and the adviser look."""
        if rows:
            self._meter.add(0, Report(blocks=((rows, 1),), rows_in=rows, taken_s=rows / 10, is_warm=True))
        needs = Resources(num_cpus=1)
        load = StageLoad(stage="write", needs=needs, num_replicas=replicas, max_replicas=most, work_s=0.1)
        self.adviser.look([StageUse(load=load, used_cpus=0.9)], NODES, limit=None, now_s=now_s)


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    pipeline = Pipeline(tmp_path)
    pipeline.looks(0.0, rows=0, replicas=1, most=1)
    assert isinstance(pipeline.events.pop(), Advised)
    return pipeline


def test_what_is_measured_begins_when_the_change_is_carried_out(pipeline: Pipeline) -> None:
    pipeline.adviser.apply()
    assert isinstance(pipeline.events.pop(), AdviceApplied)
    pipeline.looks(0.1, rows=1, replicas=1, most=1)  # the run has not heard of it yet
    pipeline.adviser.take_up()
    pipeline.looks(8.0, rows=79, replicas=12, most=12)
    pipeline.looks(18.5, rows=1260, replicas=12, most=12)
    (measured,) = pipeline.events
    assert isinstance(measured, AdviceMeasured)
    assert measured.rows_s == pytest.approx(1260 / 10.5)


def test_what_is_measured_begins_anew_when_the_balance_moves(pipeline: Pipeline) -> None:
    pipeline.adviser.apply()
    pipeline.adviser.take_up()
    pipeline.looks(8.0, rows=80, replicas=6, most=12)
    pipeline.adviser.moved()
    pipeline.looks(16.0, rows=480, replicas=12, most=12)
    pipeline.looks(26.5, rows=1260, replicas=12, most=12)
    assert pipeline.events[-1] == AdviceMeasured(rows_s=pytest.approx(1260 / 10.5))


def test_an_advice_is_applied_once(pipeline: Pipeline) -> None:
    pipeline.adviser.apply()
    with pytest.raises(RunError, match="no advice that could be applied"):
        pipeline.adviser.apply()
    pipeline.adviser.take_up()
    with pytest.raises(RunError, match="no advice that could be applied"):
        pipeline.adviser.apply()
