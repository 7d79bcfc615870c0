"""Every touch of Ray Data by ``%ray observe data``: its execution callback, whose samples become events of a pipeline's view.

Ray Data reads the variable ``RAY_DATA_EXECUTION_CALLBACKS`` when it plans an execution, so datasets made before and after are
observed alike, whatever copies of ``DataContext`` they hold. tests/ray/test_observe.py pins the inner parts.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import ray
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.operators.input_data_buffer import InputDataBuffer

from raykit.engine.run import describe
from raykit.errors import NoClusterError
from raykit.events import Event, RunAccepted, RunEnded, RunStarted, StageSampled, UserFailed
from raykit.policy.bottleneck import StageTimes, words

Tell = Callable[[Event], None]
Begin = Callable[[str], Tell]
"""Opens the view of an execution, by its name, and gives what takes its events."""

VARIABLE = "RAY_DATA_EXECUTION_CALLBACKS"
SAMPLE_S = 0.5
NUM_SAMPLES = 8  # that a word rests on: four seconds
LEAST_SAMPLES = 3

_log = logging.getLogger(__name__)
_begin: Begin | None = None


def observe(begin: Begin) -> None:
    """Open a view for each execution of Ray Data in this process, from now on. A second call takes the first one's place.

    Raises:
        NoClusterError: this process is no Ray driver.
    """
    global _begin  # noqa: PLW0603
    if not ray.is_initialized():
        raise NoClusterError(
            "This kernel is no Ray driver, so no Ray Data code can run in it.", "First: %ray connect, or ray.init()"
        )
    _begin = begin
    if (mine := _path()) not in (paths := _paths()):
        os.environ[VARIABLE] = ",".join([*paths, mine])


def leave() -> bool:
    """Observe no more executions and say whether any were observed; those that go on end their views."""
    global _begin
    was, _begin = _begin is not None, None
    if left := [each for each in _paths() if each != _path()]:
        os.environ[VARIABLE] = ",".join(left)
    else:
        os.environ.pop(VARIABLE, None)
    return was


class Observer(ExecutionCallback):
    """One execution. What fails in it is told once in the log and ends the observation, never the execution."""

    def __init__(self) -> None:
        self._execution: _Execution | None = None

    def before_execution_starts(self, executor: Any) -> None:
        begin = _begin
        if begin is not None:
            self._carefully(lambda: self._open(executor, begin))

    def on_execution_step(self, executor: Any) -> None:  # noqa: ARG002  (Ray Data's signature)
        if self._execution is not None:
            self._carefully(self._execution.step)

    def after_execution_succeeds(self, executor: Any) -> None:  # noqa: ARG002
        if self._execution is not None:
            self._carefully(self._execution.end)

    def after_execution_fails(self, executor: Any, error: BaseException) -> None:  # noqa: ARG002
        if (execution := self._execution) is not None:
            self._carefully(lambda: execution.end(error))

    def _open(self, executor: Any, begin: Begin) -> None:
        operators = [each for each in executor._topology.items() if not isinstance(each[0], InputDataBuffer)]  # noqa: SLF001
        if operators:
            self._execution = _Execution(operators, begin(executor._dataset_id))  # noqa: SLF001

    def _carefully(self, do: Callable[[], None]) -> None:
        try:
            do()
        except Exception:
            self._execution = None
            _log.warning("raykit observes this execution of Ray Data no more; the execution goes on.", exc_info=True)


class _Execution:
    """Samples the operators of an execution, in its own thread between two of its steps."""

    def __init__(self, operators: list[tuple[Any, Any]], tell: Tell) -> None:
        self._names = [f"{place}. {operator.name}" for place, (operator, _) in enumerate(operators, 1)]
        self._operators, self._tell = operators, tell
        self._times: list[deque[StageTimes]] = [deque(maxlen=NUM_SAMPLES) for _ in operators]
        self._sampled_s = 0.0
        self._is_whole = False
        tell(RunAccepted(run_kind="pipeline", folder="", stages=tuple(self._names)))
        tell(RunStarted())

    def step(self) -> None:
        self._is_whole = all(operator.has_completed() for operator, _ in self._operators)
        if self._is_whole or time.monotonic() - self._sampled_s >= SAMPLE_S:
            self._sampled_s = time.monotonic()
            self._sample()

    def end(self, error: BaseException | None = None) -> None:
        """The consumer left early when there is no error and an operator was not through at the last step."""
        if isinstance(error, Exception):
            said = describe(_root(error))
            self._tell(UserFailed(where="Ray Data", error=said, traceback_text=re.sub(r"\x1b\[[0-9;]*m", "", str(error))))
            self._tell(RunEnded(state="failed", error=said))
        else:
            self._tell(RunEnded(state="done" if self._is_whole and error is None else "stopped"))

    def _sample(self) -> None:
        for (operator, state), times in zip(self._operators, self._times, strict=True):
            times.append(_times(operator, state))
        known = len(self._times[0]) >= LEAST_SAMPLES
        said = words([_mean(times) for times in self._times]) if known else ("",) * len(self._names)
        for name, (operator, _), word in zip(self._names, self._operators, said, strict=True):
            self._tell(_sampled(name, operator, word))


def _sampled(name: str, operator: Any, word: Any) -> StageSampled:
    metrics, held = operator.metrics, operator.running_logical_usage()
    return StageSampled(
        stage=name,
        num_replicas=operator.get_actor_info().running or operator.num_active_tasks(),
        rows_waiting=_rows_waiting(operator),
        rows_in=metrics.num_row_inputs_received,
        rows_out=metrics.row_outputs_taken,
        word=word,
        num_failed_tasks=metrics.num_tasks_failed,
        num_cpus=held.cpu,
        num_gpus=held.gpu,
        held_by=_held_by(operator),
    )


def _rows_waiting(operator: Any) -> int | None:
    """Give what the operators before it gave less what it took; None where it reads a source, whose rows are not known."""
    before = operator.input_dependencies
    if any(isinstance(each, InputDataBuffer) for each in before):
        return None
    return max(0, sum(each.metrics.row_outputs_taken for each in before) - int(operator.metrics.num_row_inputs_received))


def _held_by(operator: Any) -> str:
    held = {
        "task submission": operator._in_task_submission_backpressure,  # noqa: SLF001
        "task output": operator._in_task_output_backpressure,  # noqa: SLF001
    }
    return ", ".join(name for name, holds in held.items() if holds)


def _times(operator: Any, state: Any) -> StageTimes:
    """What an operator does at this instant, as a share of 0 or 1."""
    waiting = state.has_pending_bundles()
    blocked = operator._in_task_output_backpressure  # noqa: SLF001
    starved = not blocked and not waiting and not operator.num_active_tasks()
    return StageTimes(busy=not blocked and not starved, starved=starved, blocked=blocked, has_waiting=waiting)


def _mean(times: deque[StageTimes]) -> StageTimes:
    count = len(times)
    return StageTimes(
        busy=sum(each.busy for each in times) / count,
        starved=sum(each.starved for each in times) / count,
        blocked=sum(each.blocked for each in times) / count,
        has_waiting=times[-1].has_waiting,
    )


def _root(error: BaseException) -> BaseException:
    """Give the user's own exception from under those that Ray wraps around it."""
    while (inner := getattr(error, "cause", None) or error.__cause__) is not None and isinstance(inner, BaseException):
        error = inner
    return error


def _path() -> str:
    return f"{Observer.__module__}.{Observer.__qualname__}"


def _paths() -> list[str]:
    return [each for each in os.environ.get(VARIABLE, "").split(",") if each]
